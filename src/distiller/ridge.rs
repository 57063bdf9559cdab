//! Ridge regression of rows on rows, with the solution as a product of two factors.

use crate::numeric::dot;

/// The map `L` that minimises `‖target − source·L‖² + λ·s·‖L‖²`, as factors `L = left·right`, both stored by rows.
pub(super) struct Ridge {
    pub(super) left: Vec<Vec<f64>>,
    pub(super) right: Vec<Vec<f64>>,
}

/// Fits `n` rows of width `d`. The scale is `s = ‖source‖² / min(n, d)`, the mean of those eigenvalues of the Gram
/// matrix that can be nonzero. So `λ` has no unit, and scaling the source does not change the fit.
///
/// If there are fewer rows than dimensions, it solves the dual form, `L = Xᵀ·(X·Xᵀ + λs)⁻¹·Y`, otherwise the primal
/// form, `L = (Xᵀ·X + λs)⁻¹·Xᵀ·Y` (Hoerl and Kennard, 1970). Cost: `n·d·min(n, d)` multiply-adds and `min(n, d)³/6`.
///
/// Returns `None` if the Gram matrix is not positive definite, as for a source of zeros.
pub(super) fn ridge(source: &[Vec<f64>], target: &[Vec<f64>], lambda: f64) -> Option<Ridge> {
    let (n, d) = (source.len(), source.first()?.len());
    let scale = source.iter().map(|row| dot(row, row)).sum::<f64>() / n.min(d) as f64;
    let turned = transpose(source);
    if n <= d {
        let solved = solve(gram(source, lambda * scale), target.to_vec())?;
        return Some(Ridge { left: turned, right: solved });
    }
    // The primal form is not a product of two factors. The identity as the second one gives both forms one type.
    let target = transpose(target);
    let product = turned.iter().map(|x| target.iter().map(|y| dot(x, y)).collect()).collect();
    let solved = solve(gram(&turned, lambda * scale), product)?;
    let identity = (0..d).map(|i| (0..d).map(|j| f64::from(i == j)).collect()).collect();
    Some(Ridge { left: solved, right: identity })
}

/// Returns `rows·rowsᵀ + ridge·I`.
fn gram(rows: &[Vec<f64>], ridge: f64) -> Vec<Vec<f64>> {
    // Only the lower triangle, half the work: `solve` reads no more.
    let diagonal = |i: usize, j: usize| if i == j { ridge } else { 0.0 };
    let entry = |i: usize, j: usize| dot(&rows[i], &rows[j]) + diagonal(i, j);
    (0..rows.len()).map(|i| (0..=i).map(|j| entry(i, j)).collect()).collect()
}

/// Solves `matrix·X = rows` by Cholesky factorization. Reads only the lower triangle of `matrix`.
fn solve(mut matrix: Vec<Vec<f64>>, mut rows: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    let size = matrix.len();
    for i in 0..size {
        let (above, rest) = matrix.split_at_mut(i);
        let row = &mut rest[0];
        for (j, other) in above.iter().enumerate() {
            row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
        }
        let pivot = row[i] - dot(&row[..i], &row[..i]);
        // With a penalty above 0, the matrix is positive definite, so there is no pivoting. A pivot of 0 comes from a
        // source of zeros, whose scale makes the penalty 0 too.
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        row[i] = pivot.sqrt();
    }
    // The lower triangle now holds L with `matrix = L·Lᵀ`: solve with L from the top, then with Lᵀ from the bottom.
    for (i, factors) in matrix.iter().enumerate() {
        let (before, rest) = rows.split_at_mut(i);
        subtract(&mut rest[0], before.iter().zip(factors));
        for v in &mut rest[0] {
            *v /= factors[i];
        }
    }
    for i in (0..size).rev() {
        let (before, after) = rows.split_at_mut(i + 1);
        let column = matrix[i + 1..].iter().map(|row| &row[i]);
        subtract(&mut before[i], after.iter().zip(column));
        for v in &mut before[i] {
            *v /= matrix[i][i];
        }
    }
    Some(rows)
}

fn subtract<'a>(row: &mut [f64], others: impl Iterator<Item = (&'a Vec<f64>, &'a f64)>) {
    for (other, share) in others {
        for (r, o) in row.iter_mut().zip(other) {
            *r -= share * o;
        }
    }
}

fn transpose(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let width = rows.first().map_or(0, Vec::len);
    (0..width).map(|c| rows.iter().map(|row| row[c]).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(n: usize, d: usize, phase: f64) -> Vec<Vec<f64>> {
        let at = |i: usize, j: usize| ((i * d + j) as f64 * 1.37 + phase).sin() * (1.0 + j as f64);
        (0..n).map(|i| (0..d).map(|j| at(i, j)).collect()).collect()
    }

    fn product(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let b = transpose(b);
        a.iter().map(|row| b.iter().map(|column| dot(row, column)).collect()).collect()
    }

    /// The gradient of the penalized error is 0 at its minimum: `Xᵀ·(X·L − Y) + λs·L = 0`.
    #[test]
    fn the_gradient_of_the_penalised_error_is_zero_at_the_fit() {
        for (n, d) in [(3, 7), (7, 7), (12, 5), (1, 4)] {
            for lambda in [1e-6, 1e-2, 1.0] {
                let (x, y) = (rows(n, d, 0.3), rows(n, d, 2.1));
                let fit = ridge(&x, &y, lambda).unwrap();
                let map = product(&fit.left, &fit.right);
                let scale = x.iter().flatten().map(|v| v * v).sum::<f64>() / n.min(d) as f64;
                let error: Vec<Vec<f64>> = product(&x, &map)
                    .iter()
                    .zip(&y)
                    .map(|(got, y)| got.iter().zip(y).map(|(g, y)| g - y).collect())
                    .collect();
                let slope = product(&transpose(&x), &error);
                for (slope, map) in slope.iter().flatten().zip(map.iter().flatten()) {
                    assert!((slope + lambda * scale * map).abs() < 1e-8, "{n} {d} {lambda}");
                }
            }
        }
    }

    #[test]
    fn the_scale_of_the_source_does_not_matter() {
        let (x, y) = (rows(4, 9, 0.3), rows(4, 9, 2.1));
        let large: Vec<Vec<f64>> =
            x.iter().map(|row| row.iter().map(|v| 1000.0 * v).collect()).collect();
        let fitted = |x: &[Vec<f64>]| {
            let fit = ridge(x, &y, 1e-2).unwrap();
            product(x, &product(&fit.left, &fit.right))
        };
        for (a, b) in fitted(&x).iter().flatten().zip(fitted(&large).iter().flatten()) {
            assert!((a - b).abs() < 1e-9, "{a} {b}");
        }
    }

    #[test]
    fn a_source_of_zeros_cannot_be_fitted() {
        assert!(ridge(&vec![vec![0.0; 3]; 2], &rows(2, 3, 0.0), 1e-2).is_none());
        assert!(ridge(&[], &[], 1e-2).is_none());
    }
}
