//! Eigenvalues of a symmetric matrix.

/// The eigenvalues of a symmetric matrix, given as rows; smallest first.
///
/// Uses the cyclic Jacobi method (Jacobi, 1846; Golub and Van Loan, *Matrix Computations*, §8.5): each
/// entry off the diagonal is rotated to zero, row by row, until all are below rounding. Absolute errors are
/// a few `f64` roundings of the largest eigenvalue. Cost: about `30·n³` operations, a tenth of a second for
/// `n` = 350. The one-sided form, as in the SVD of the distillers, would lose the signs, which are needed
/// to detect invalid kernels.
pub(super) fn eigenvalues(mut matrix: Vec<Vec<f64>>) -> Vec<f64> {
    const SWEEPS: usize = 60; // 6 to 10 are usual
    let count = matrix.len();
    let length = matrix.iter().flatten().map(|v| v * v).sum::<f64>().sqrt();
    let negligible = f64::EPSILON * length / count.max(1) as f64;
    for _ in 0..SWEEPS {
        let mut done = true;
        for i in 0..count {
            for j in i + 1..count {
                if matrix[i][j].abs() > negligible {
                    done = false;
                    annul(&mut matrix, i, j);
                }
            }
        }
        if done {
            break;
        }
    }
    let mut values: Vec<f64> = matrix.iter().enumerate().map(|(at, row)| row[at]).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Rotates the plane of axes `i < j` so that their entry becomes 0, by the smaller of the two possible
/// angles.
fn annul(matrix: &mut [Vec<f64>], i: usize, j: usize) {
    let entry = matrix[i][j];
    let zeta = (matrix[j][j] - matrix[i][i]) / (2.0 * entry);
    let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
    let cosine = tangent.hypot(1.0).recip();
    let sine = cosine * tangent;
    let (before, after) = matrix.split_at_mut(j);
    for (x, y) in before[i].iter_mut().zip(&mut after[0]) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
    for row in &mut *matrix {
        let (x, y) = (row[i], row[j]);
        (row[i], row[j]) = (cosine * x - sine * y, sine * x + cosine * y);
    }
    (matrix[i][j], matrix[j][i]) = (0.0, 0.0);
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

    use super::*;

    fn assert_values(matrix: Vec<Vec<f64>>, mut expected: Vec<f64>) {
        let scale = expected.iter().fold(1.0f64, |most, v| most.max(v.abs()));
        expected.sort_by(f64::total_cmp);
        let got = eigenvalues(matrix);
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-13 * scale, "{got}, expected {expected}");
        }
    }

    #[test]
    fn closed_forms() {
        assert_values(vec![], vec![]);
        assert_values(vec![vec![-3.0]], vec![-3.0]);
        assert_values(vec![vec![0.0; 4]; 4], vec![0.0; 4]);
        // Trace 4, determinant 4 − 9 = −5.
        assert_values(vec![vec![2.0, 3.0], vec![3.0, 2.0]], vec![5.0, -1.0]);
        // All ones: n once, and 0 otherwise.
        assert_values(vec![vec![1.0; 7]; 7], [vec![7.0], vec![0.0; 6]].concat());
        // The Laplacians of a path and of a cycle, whose eigenvalues are cosines; those of the cycle are
        // double.
        let n = 25;
        let second = |i: usize, j: usize| if i == j { 2.0 } else { -f64::from(i.abs_diff(j) == 1) };
        let path = (0..n).map(|i| (0..n).map(|j| second(i, j)).collect()).collect();
        let angle = |k: usize, of: usize| 2.0 - 2.0 * (PI * k as f64 / of as f64).cos();
        assert_values(path, (1..=n).map(|k| angle(k, n + 1)).collect());
        let round = |i: usize, j: usize| if i.abs_diff(j) == n - 1 { -1.0 } else { second(i, j) };
        let cycle = (0..n).map(|i| (0..n).map(|j| round(i, j)).collect()).collect();
        assert_values(cycle, (0..n).map(|k| angle(2 * k, n)).collect());
    }

    /// A diagonal matrix between products of reflections, which are orthogonal by construction.
    #[test]
    fn known_spectra_are_found_again() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut number = || (rng.next_u32() as f64 / f64::from(u32::MAX)) * 2.0 - 1.0;
        for (n, spread) in [(2, 1.0), (9, 1.0), (30, 1.0), (30, 1e-9)] {
            let spectrum: Vec<f64> =
                (0..n).map(|i| if i == 0 { -2.0 } else { spread * number() }).collect();
            let mut matrix: Vec<Vec<f64>> = (0..n)
                .map(|i| (0..n).map(|j| if i == j { spectrum[i] } else { 0.0 }).collect())
                .collect();
            for _ in 0..3 {
                let axis: Vec<f64> = (0..n).map(|_| number()).collect();
                let scale = 2.0 / axis.iter().map(|v| v * v).sum::<f64>();
                // H·M·H with H = 1 − scale·v·vᵀ: rows, then columns.
                for _ in 0..2 {
                    for row in &mut matrix {
                        let share = scale * row.iter().zip(&axis).map(|(r, v)| r * v).sum::<f64>();
                        for (value, along) in row.iter_mut().zip(&axis) {
                            *value -= share * along;
                        }
                    }
                    matrix = (0..n).map(|i| matrix.iter().map(|row| row[i]).collect()).collect();
                }
            }
            assert_values(matrix, spectrum);
        }
    }
}
