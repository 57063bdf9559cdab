//! The best low-rank approximation of a product of two matrices.

use burn::tensor::{Device, Tensor};
use rand::{SeedableRng, rngs::ChaCha8Rng};
use rand_distr::{Distribution, StandardNormal};

use crate::{
    numeric::{dot, norm},
    tensor::from_f32,
};

/// The leading singular triplets of a matrix, largest first: `left[i]` and `right[i]` are the singular vectors of
/// `values[i]`. They are on the host, in `f64`.
#[derive(Clone, Debug)]
pub(super) struct Svd {
    pub(super) values: Vec<f64>,
    pub(super) left: Vec<Vec<f64>>,
    pub(super) right: Vec<Vec<f64>>,
}

/// The number of columns of the range finder beyond the requested rank.
const OVERSAMPLING: usize = 16;

/// The number of power iterations: passes over the matrix and its transpose that align the range finder with the
/// largest singular values.
const POWER_ITERATIONS: usize = 4;

/// Singular values below this fraction of the largest are treated as rounding errors of the `f32` products.
const NEGLIGIBLE: f64 = 1e-6;

/// Returns the `rank` leading singular triplets of `left·right` (`[m, k]`, `[k, n]`), or fewer if the product has a
/// lower rank. Returns `None` if a value is not finite.
///
/// The algorithm is a randomized range finder with power iterations and orthonormalization between them (Halko,
/// Martinsson and Tropp, *Finding structure with randomness*, 2011, algorithms 4.4 and 5.1). It works on the factors
/// and never forms the product.
///
/// Cost: `2·POWER_ITERATIONS + 2` multiplications of the product by `l = rank + 16` columns on the device, each `(m +
/// n)·k·l` multiply-adds, and `O((m + n)·l²)` on the host. For a feed-forward map of width 4096 and 14,336 at rank 64
/// that is 1e11 multiply-adds, 10 s on two busy CPU cores; a full decomposition takes about 1e12, after the product
/// itself has been computed.
///
/// Accuracy: exact up to the rounding of the `f32` products if `l` reaches the smaller side of the product. Otherwise
/// the expected error in the spectral norm is at most `(1 + √(rank/15) + e·√l/16·√(min(m, n) − rank))^(1/9)` times the
/// best one (their corollary 10.10 with 4 power iterations). This is a factor of 1.7 at rank 64 and width 4096 if all
/// singular values are equal, where any subspace is as good as another, and negligible if the spectrum decays.
pub(super) fn truncated_svd(
    left: &Tensor<2>,
    right: &Tensor<2>,
    rank: usize,
    seed: u64,
) -> Option<Svd> {
    let (m, n) = (left.dims()[0], right.dims()[1]);
    // The rank of the product is at most the smallest of these dimensions, and further columns would depend on the
    // others.
    let columns = rank.saturating_add(OVERSAMPLING).min(m).min(n).min(left.dims()[1]);
    let device = left.device();
    let (left_turned, right_turned) = (left.clone().transpose(), right.clone().transpose());
    // The products, which are most of the work, run on the device. The basis is orthonormalized on the host, because
    // burn's `svd` panics when it does not converge, and its `qr` keeps a square Q, 64 MB at width 4096
    // (docs/design/starting-points.md).
    let forth = |basis: &[Vec<f64>]| {
        let basis = tensor(basis, n, &device).transpose();
        host(left.clone().matmul(right.clone().matmul(basis)).transpose())
    };
    let back = |basis: &[Vec<f64>]| {
        let basis = tensor(basis, m, &device).transpose();
        host(right_turned.clone().matmul(left_turned.clone().matmul(basis)).transpose())
    };
    let mut basis = forth(&noise(columns, n, seed))?;
    orthonormalise(&mut basis);
    for _ in 0..POWER_ITERATIONS {
        // Without orthonormalization in between, all columns would turn towards the largest singular vector, and the
        // others would be lost to rounding.
        let mut rows = back(&basis)?;
        orthonormalise(&mut rows);
        basis = forth(&rows)?;
        orthonormalise(&mut basis);
    }
    // With P the product and Q the basis, Pᵀ·Q = V·S·Wᵀ gives P ≈ Q·Qᵀ·P = (Q·W)·S·Vᵀ.
    let (values, right, mixing) = jacobi(back(&basis)?);
    let largest = values.first().copied().unwrap_or(0.0);
    let kept = values.iter().take(rank).filter(|&&v| v > NEGLIGIBLE * largest).count();
    let left = mixing.iter().take(kept).map(|weights| combine(&basis, weights)).collect();
    Some(Svd { values: values[..kept].to_vec(), left, right: right[..kept].to_vec() })
}

/// Returns `vectors` vectors of `length` standard normal values.
fn noise(vectors: usize, length: usize, seed: u64) -> Vec<Vec<f64>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut vector = || (0..length).map(|_| StandardNormal.sample(&mut rng)).collect();
    (0..vectors).map(|_| vector()).collect()
}

/// Orthonormalizes vectors one after the other. A vector that depends linearly on earlier ones becomes 0.
///
/// Gram–Schmidt, applied twice to each vector: once loses orthogonality, twice is enough (Giraud et al., 2005).
pub(super) fn orthonormalise(vectors: &mut [Vec<f64>]) {
    for at in 0..vectors.len() {
        let (before, rest) = vectors.split_at_mut(at);
        let vector = &mut rest[0];
        let length = norm(vector);
        for _ in 0..2 {
            for other in before.iter() {
                let share = dot(other, vector);
                for (v, o) in vector.iter_mut().zip(other) {
                    *v -= share * o;
                }
            }
        }
        let left = norm(vector);
        // What is left of a dependent vector is rounding. Scaled to length 1, it would be an arbitrary direction.
        let scale = if left > 1e-12 * length { left.recip() } else { 0.0 };
        for v in vector {
            *v *= scale;
        }
    }
}

/// Returns the singular values of the matrix with these columns, largest first, its left singular vectors and its
/// right ones.
///
/// One-sided Jacobi (Hestenes, 1958): it rotates pairs of columns until all are orthogonal. It always terminates, and
/// small singular values are as accurate as large ones.
pub(super) fn jacobi(mut columns: Vec<Vec<f64>>) -> (Vec<f64>, Vec<Vec<f64>>, Vec<Vec<f64>>) {
    const SWEEPS: usize = 60; // 6 to 10 are enough in practice
    let count = columns.len();
    let mut turned: Vec<Vec<f64>> =
        (0..count).map(|i| (0..count).map(|j| f64::from(i == j)).collect()).collect();
    for _ in 0..SWEEPS {
        let mut done = true;
        for i in 0..count {
            for j in i + 1..count {
                let (a, b) = (dot(&columns[i], &columns[i]), dot(&columns[j], &columns[j]));
                let c = dot(&columns[i], &columns[j]);
                // Relative to the lengths of this pair, so that small singular values become as accurate as large
                // ones.
                if c.abs() <= 1e-15 * (a * b).sqrt() {
                    continue;
                }
                done = false;
                let zeta = (b - a) / (2.0 * c);
                // Of the two rotations that make the columns orthogonal, the smaller one, of at most 45°: the sweeps
                // converge, and the sum has no cancellation.
                let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let cosine = tangent.hypot(1.0).recip();
                let sine = cosine * tangent;
                rotate(&mut columns, i, j, cosine, sine);
                rotate(&mut turned, i, j, cosine, sine);
            }
        }
        if done {
            break;
        }
    }
    let values: Vec<f64> = columns.iter().map(|column| norm(column)).collect();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&i, &j| values[j].total_cmp(&values[i]));
    let left = order.iter().map(|&i| {
        let scale = if values[i] > 0.0 { values[i].recip() } else { 0.0 };
        columns[i].iter().map(|v| v * scale).collect()
    });
    (
        order.iter().map(|&i| values[i]).collect(),
        left.collect(),
        order.iter().map(|&i| turned[i].clone()).collect(),
    )
}

fn rotate(columns: &mut [Vec<f64>], i: usize, j: usize, cosine: f64, sine: f64) {
    let (before, after) = columns.split_at_mut(j);
    for (x, y) in before[i].iter_mut().zip(&mut after[0]) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
}

/// `Σ weights[i]·vectors[i]`
fn combine(vectors: &[Vec<f64>], weights: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; vectors.first().map_or(0, Vec::len)];
    for (vector, weight) in vectors.iter().zip(weights) {
        for (s, v) in sum.iter_mut().zip(vector) {
            *s += weight * v;
        }
    }
    sum
}

/// Makes a tensor whose rows are the vectors, of `length` values each.
pub(super) fn tensor(rows: &[Vec<f64>], length: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = rows.iter().flatten().map(|&v| v as f32).collect();
    from_f32(values, [rows.len(), length], device)
}

/// Returns the rows of an `f32` tensor as vectors, or `None` if a value is not finite or the tensor cannot be read.
pub(super) fn host(tensor: Tensor<2>) -> Option<Vec<Vec<f64>>> {
    // `chunks` panics on 0.
    let width = tensor.dims()[1].max(1);
    let values: Vec<f32> = tensor.try_into_data().ok()?.try_into_vec().ok()?;
    let rows = values.chunks(width).map(|row| row.iter().map(|&v| f64::from(v)).collect());
    values.iter().all(|v| v.is_finite()).then(|| rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::devices;

    /// A matrix with known singular values and vectors: its rows are `Σ values[i]·left[i]·right[i]ᵀ`.
    struct Known {
        left: Vec<Vec<f64>>,
        right: Vec<Vec<f64>>,
        values: Vec<f64>,
    }

    impl Known {
        /// Singular vectors from products of Householder reflections, which are orthogonal by construction.
        fn new(m: usize, n: usize, values: Vec<f64>) -> Self {
            Self { left: orthogonal(m, 1), right: orthogonal(n, 2), values }
        }

        fn rows(&self, rank: usize) -> Vec<Vec<f64>> {
            let (m, n) = (self.left.len(), self.right.len());
            let at = |r: usize, c: usize| {
                (0..rank).map(|i| self.values[i] * self.left[i][r] * self.right[i][c]).sum()
            };
            (0..m).map(|r| (0..n).map(|c| at(r, c)).collect()).collect()
        }
    }

    fn orthogonal(size: usize, seed: u64) -> Vec<Vec<f64>> {
        let mut matrix: Vec<Vec<f64>> =
            (0..size).map(|i| (0..size).map(|j| f64::from(i == j)).collect()).collect();
        for v in noise(3, size, seed) {
            let scale = 2.0 / dot(&v, &v);
            for row in &mut matrix {
                let share = scale * dot(row, &v);
                for (r, v) in row.iter_mut().zip(&v) {
                    *r -= share * v;
                }
            }
        }
        matrix
    }

    fn identity(size: usize) -> Vec<Vec<f64>> {
        (0..size).map(|i| (0..size).map(|j| f64::from(i == j)).collect()).collect()
    }

    fn assert_orthonormal(vectors: &[Vec<f64>], tolerance: f64) {
        for (i, a) in vectors.iter().enumerate() {
            for (j, b) in vectors.iter().enumerate() {
                assert!((dot(a, b) - f64::from(i == j)).abs() < tolerance, "{i} {j}");
            }
        }
    }

    /// The Frobenius norm of the difference between the matrix and the product of its triplets.
    fn residual(matrix: &[Vec<f64>], svd: &Svd) -> f64 {
        let mut sum = 0.0;
        for (r, row) in matrix.iter().enumerate() {
            for (c, value) in row.iter().enumerate() {
                let got: f64 = (0..svd.values.len())
                    .map(|i| svd.values[i] * svd.left[i][r] * svd.right[i][c])
                    .sum();
                sum += (value - got).powi(2);
            }
        }
        sum.sqrt()
    }

    /// The sine of the largest angle between two subspaces, each given by an orthonormal basis.
    fn subspace_error(known: &[Vec<f64>], got: &[Vec<f64>]) -> f64 {
        let outside = known.iter().map(|vector| {
            let inside = combine(got, &got.iter().map(|g| dot(g, vector)).collect::<Vec<_>>());
            vector.iter().zip(inside).map(|(v, i)| v - i).collect()
        });
        jacobi(outside.collect()).0[0]
    }

    #[test]
    fn jacobi_is_a_singular_value_decomposition() {
        // [[4, 0], [3, -5]]: singular values √40 and √10, computed by hand from AᵀA = [[25, -15], [-15, 25]].
        let (values, left, right) = jacobi(vec![vec![4.0, 3.0], vec![0.0, -5.0]]);
        assert!(
            (values[0] - 40f64.sqrt()).abs() < 1e-12 && (values[1] - 10f64.sqrt()).abs() < 1e-12
        );
        assert_orthonormal(&left, 1e-12);
        assert_orthonormal(&right, 1e-12);
        // A zero column and two equal columns each give a singular value of 0.
        let (values, ..) = jacobi(vec![vec![3.0, 4.0], vec![3.0, 4.0], vec![0.0, 0.0]]);
        assert!((values[0] - 50f64.sqrt()).abs() < 1e-12 && values[1] < 1e-12 && values[2] == 0.0);
        let known = Known::new(20, 12, (0..12).map(|i| 10.0 * 0.5f64.powi(i)).collect());
        let rows = known.rows(12);
        let columns = (0..12).map(|c| rows.iter().map(|row| row[c]).collect()).collect();
        for (got, value) in jacobi(columns).0.iter().zip(&known.values) {
            assert!((got - value).abs() < 1e-13 * 10.0, "{got} {value}");
        }
    }

    #[test]
    fn gram_schmidt_keeps_the_span_and_drops_dependent_vectors() {
        let mut vectors = noise(5, 9, 3);
        vectors[3] = combine(&vectors[..3], &[1.0, -2.0, 0.5]);
        let first = vectors[0].clone();
        orthonormalise(&mut vectors);
        assert!(norm(&vectors[3]) == 0.0);
        vectors.remove(3);
        assert_orthonormal(&vectors, 1e-13);
        assert!((dot(&vectors[0], &first) - norm(&first)).abs() < 1e-12);
        // Nearly parallel vectors, where a single pass loses orthogonality.
        let mut near = vec![vec![1.0, 1e-9, 0.0], vec![1.0, 0.0, 1e-9], vec![1.0, 1e-9, 1e-9]];
        near[2][0] += 1e-3;
        orthonormalise(&mut near);
        assert!(dot(&near[0], &near[1]).abs() < 1e-12);
    }

    /// A small product is decomposed exactly, because the range finder has as many columns as the product.
    #[test]
    fn small_products_are_exact_and_truncation_leaves_the_tail() {
        for device in devices() {
            for (m, n) in [(14, 14), (14, 9), (9, 14)] {
                let values: Vec<f64> = (0..9).map(|i| 5.0 * 0.7f64.powi(i)).collect();
                let known = Known::new(m, n, values.clone());
                let matrix = known.rows(9);
                let left = tensor(&matrix, n, &device);
                let right = tensor(&identity(n), n, &device);
                for rank in [1, 3, 8, 9, 40] {
                    let svd = truncated_svd(&left, &right, rank, 7).unwrap();
                    assert_eq!(svd.values.len(), rank.min(9));
                    for (got, value) in svd.values.iter().zip(&values) {
                        assert!((got - value).abs() < 5e-6, "rank {rank}: {got} {value}");
                    }
                    assert_orthonormal(&svd.left, 1e-5);
                    assert_orthonormal(&svd.right, 1e-5);
                    // Eckart and Young: the error of the best approximation of this rank is the root of the sum of the
                    // omitted squares.
                    let tail = values[rank.min(9)..].iter().map(|v| v * v).sum::<f64>().sqrt();
                    assert!((residual(&matrix, &svd) - tail).abs() < 1e-5, "rank {rank}");
                }
            }
        }
    }

    /// The range finder with fewer columns than the product, against the known decomposition.
    #[test]
    fn a_falling_spectrum_is_found_from_a_few_columns() {
        let (m, n, rank) = (120, 90, 8);
        let values: Vec<f64> = (0..n).map(|i| 9.0 * 0.8f64.powi(i as i32)).collect();
        let known = Known::new(m, n, values.clone());
        let matrix = known.rows(n);
        let device = Device::flex();
        // The factors are U·S and Vᵀ, so that neither is the identity.
        let left: Vec<Vec<f64>> =
            (0..m).map(|r| (0..n).map(|i| known.left[i][r] * values[i]).collect()).collect();
        let svd =
            truncated_svd(&tensor(&left, n, &device), &tensor(&known.right, n, &device), rank, 7)
                .unwrap();
        for (got, value) in svd.values.iter().zip(&values) {
            assert!((got - value).abs() < 1e-5 * values[0], "{got} {value}");
        }
        assert!(subspace_error(&known.left[..rank], &svd.left) < 1e-4);
        assert!(subspace_error(&known.right[..rank], &svd.right) < 1e-4);
        let tail = values[rank..].iter().map(|v| v * v).sum::<f64>().sqrt();
        let error = residual(&matrix, &svd);
        assert!(error > tail - 1e-4 && error < tail * (1.0 + 1e-4), "{error} {tail}");
    }

    /// The worst case, a spectrum that hardly decays: the error is still within a few per cent of the best
    /// approximation.
    #[test]
    fn a_flat_spectrum_is_approximated_within_a_few_per_cent() {
        let (m, n, rank) = (120, 100, 8);
        let values: Vec<f64> = (0..n).map(|i| 1.0 - 0.005 * i as f64).collect();
        let known = Known::new(m, n, values.clone());
        let matrix = known.rows(n);
        let device = Device::flex();
        let right = tensor(&identity(n), n, &device);
        let svd = truncated_svd(&tensor(&matrix, n, &device), &right, rank, 7).unwrap();
        let tail = values[rank..].iter().map(|v| v * v).sum::<f64>().sqrt();
        let error = residual(&matrix, &svd);
        assert!(error > tail - 1e-4 && error < tail * 1.03, "{error} {tail}");
    }

    #[test]
    fn a_product_of_low_rank_has_that_many_triplets_and_none_if_it_is_not_finite() {
        let device = Device::flex();
        let known = Known::new(30, 30, vec![3.0, 2.0]);
        let mut matrix = known.rows(2);
        let eye = tensor(&identity(30), 30, &device);
        assert_eq!(
            truncated_svd(&tensor(&matrix, 30, &device), &eye, 8, 0).unwrap().values.len(),
            2
        );
        let zero = vec![vec![0.0; 30]; 30];
        assert_eq!(truncated_svd(&tensor(&zero, 30, &device), &eye, 8, 0).unwrap().values.len(), 0);
        matrix[3][4] = f64::NAN;
        assert!(truncated_svd(&tensor(&matrix, 30, &device), &eye, 8, 0).is_none());
    }
}
