//! Partial correlations from sums of products.

/// Relative squared length below which the rest of a column is rounding error.
const ROUNDING: f64 = 1e-10;

/// Sums of products of centred ranks, `[column, column]`.
pub(super) struct Gram {
    /// Over all items.
    pub(super) all: Vec<f64>,
    /// Over all items, centred within each problem.
    pub(super) within: Vec<f64>,
}

impl Gram {
    /// The correlation of two columns with others held fixed, by elimination; or the index of a column of
    /// which nothing is left. Constant columns and columns that follow from earlier ones hold nothing
    /// fixed.
    pub(super) fn partial(
        &self,
        products: &[f64],
        of: usize,
        with: usize,
        given: &[usize],
    ) -> Result<f64, usize> {
        let columns: Vec<usize> = given.iter().copied().chain([of, with]).collect();
        let (width, count) = (self.all.len().isqrt(), columns.len());
        // Relative to the whole length, so that remainders can be distinguished from rounding errors.
        let length = |column: usize| self.all[column * width + column].sqrt();
        let mut left = vec![0.0; count * count];
        for (a, &row) in columns.iter().enumerate() {
            for (b, &column) in columns.iter().enumerate() {
                let lengths = length(row) * length(column);
                if lengths > 0.0 {
                    left[a * count + b] = products[row * width + column] / lengths;
                }
            }
        }
        for fixed in 0..given.len() {
            let pivot = left[fixed * count + fixed];
            if pivot <= ROUNDING {
                continue;
            }
            for a in fixed + 1..count {
                let share = left[a * count + fixed] / pivot;
                for b in fixed + 1..count {
                    left[a * count + b] -= share * left[fixed * count + b];
                }
            }
        }
        let (x, y) = (count - 2, count - 1);
        let (x_left, y_left) = (left[x * count + x], left[y * count + y]);
        match (x_left > ROUNDING, y_left > ROUNDING) {
            (true, true) => Ok((left[x * count + y] / (x_left * y_left).sqrt()).clamp(-1.0, 1.0)),
            (true, false) => Err(with),
            _ => Err(of),
        }
    }
}
