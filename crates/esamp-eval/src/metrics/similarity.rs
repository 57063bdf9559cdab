//! Cosine similarity of embeddings.

use super::MetricError;

/// The cosine of the angle between two vectors, `⟨a, b⟩ / (‖a‖·‖b‖)`, in `[−1, 1]`.
///
/// # Errors
///
/// [`MetricError::Length`] for vectors of different lengths, [`MetricError::NotFinite`], and
/// [`MetricError::OutOfRange`] for a zero vector, which has no direction.
///
/// ```
/// assert_eq!(esamp_eval::metrics::cosine(&[3.0, 4.0], &[4.0, 3.0])?, 0.96);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn cosine(a: &[f64], b: &[f64]) -> Result<f64, MetricError> {
    let rows = unit_rows(&[a, b])?;
    Ok(dot(&rows[0], &rows[1]).clamp(-1.0, 1.0))
}

/// The mean cosine over all pairs of `embeddings` (`n` rows of equal width `d`): the "similarity" of the
/// paper's stories, lower if completions differ more in meaning.
///
/// At most 1, and at least `−1/(n − 1)`. It is not a count: half of the pairs far apart and half close
/// gives the same mean as all of them in between. [`vendi_from_embeddings`](super::vendi_from_embeddings)
/// tells these apart.
///
/// Cost: `n·d`, from `‖Σ u‖² = n + Σ ⟨u_i, u_j⟩` over unit vectors.
///
/// # Errors
///
/// [`MetricError::TooFew`] for fewer than two rows, and those of [`cosine`].
///
/// ```
/// use esamp_eval::metrics::mean_pairwise_cosine;
///
/// // Two equal directions and a third at a right angle: 1, 0 and 0.
/// let mean = mean_pairwise_cosine(&[[2.0, 0.0], [5.0, 0.0], [0.0, 1.0]])?;
/// assert!((mean - 1.0 / 3.0).abs() < 1e-12);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn mean_pairwise_cosine<R: AsRef<[f64]>>(embeddings: &[R]) -> Result<f64, MetricError> {
    MetricError::at_least("embeddings", 2, embeddings.len())?;
    let rows = unit_rows(embeddings)?;
    let mut sum = vec![0.0; rows[0].len()];
    for row in &rows {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
    let count = rows.len() as f64;
    Ok(((dot(&sum, &sum) - count) / (count * (count - 1.0))).min(1.0))
}

/// The rows scaled to length 1.
pub(super) fn unit_rows<R: AsRef<[f64]>>(rows: &[R]) -> Result<Vec<Vec<f64>>, MetricError> {
    let width = rows.first().map_or(0, |row| row.as_ref().len());
    let unit = |(at, row): (usize, &R)| {
        let (row, name) = (row.as_ref(), format_args!("embedding {at}"));
        MetricError::same_length(name, width, row.len())?;
        MetricError::finite(name, row)?;
        // Divide by the largest value first: squares of large values overflow, and squares of small ones
        // underflow.
        let largest = row.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        MetricError::check(largest > 0.0, name, "a length above 0", 0)?;
        let row: Vec<f64> = row.iter().map(|value| value / largest).collect();
        let length = dot(&row, &row).sqrt();
        Ok(row.into_iter().map(|value| value / length).collect())
    };
    rows.iter().enumerate().map(unit).collect()
}

/// `Σ a·b`
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cosines_by_hand() {
        assert_eq!(cosine(&[1.0, 0.0], &[-7.0, 0.0]).unwrap(), -1.0);
        assert_eq!(cosine(&[0.0, 2.0], &[5.0, 0.0]).unwrap(), 0.0);
        for scale in [1e-300, 1e300] {
            let got = cosine(&[3.0 * scale, 4.0 * scale], &[1.0, 0.0]).unwrap();
            assert!((got - 0.6).abs() < 1e-15, "{got}");
        }
        // Four corners of a tetrahedron: −1/3 each, the minimum for four.
        let corners = [[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]];
        assert!((mean_pairwise_cosine(&corners).unwrap() + 1.0 / 3.0).abs() < 1e-15);
        assert!((mean_pairwise_cosine(&[[0.1, 0.2]; 5]).unwrap() - 1.0).abs() < 1e-15);
    }

    #[test]
    fn what_has_no_direction_is_an_error() {
        let text = |a: &[f64], b: &[f64]| cosine(a, b).unwrap_err().to_string();
        assert_eq!(text(&[1.0], &[0.0]), "embedding 1: expected a length above 0, got 0");
        assert_eq!(text(&[1.0], &[1.0, 2.0]), "embedding 1: expected 1 values, got 2");
        assert_eq!(
            text(&[f64::INFINITY], &[1.0]),
            "embedding 0, value 0: expected a finite number, got inf"
        );
        assert!(cosine(&[], &[]).is_err());
        let alone = mean_pairwise_cosine(&[[1.0]]).unwrap_err().to_string();
        assert_eq!(alone, "embeddings: expected at least 2, got 1");
    }

    proptest! {
        #[test]
        fn the_mean_is_that_of_all_pairs(
            rows in prop::collection::vec(prop::collection::vec(-5.0f64..5.0, 3), 2..12),
        ) {
            prop_assume!(rows.iter().all(|row| dot(row, row) > 1e-6));
            let (mut sum, mut pairs) = (0.0, 0.0);
            for (i, a) in rows.iter().enumerate() {
                for b in &rows[..i] {
                    sum += dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt());
                    pairs += 1.0;
                }
            }
            let got = mean_pairwise_cosine(&rows).unwrap();
            prop_assert!((got - sum / pairs).abs() < 1e-12, "{got}, expected {}", sum / pairs);
        }
    }
}
