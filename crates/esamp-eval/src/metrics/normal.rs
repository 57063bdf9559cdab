//! The standard normal distribution.

use std::f64::consts::PI;

/// Beyond this the distribution function is 0 or 1 to the precision needed here.
const EDGE: f64 = 8.0;

/// The distribution function at `x`, accurate to about 1e-15.
///
/// `½ + φ(x)·(x + x³/3 + x⁵/(3·5) + …)`: all terms have the sign of x, so nothing cancels before the last
/// sum (Marsaglia, *Evaluating the Normal Distribution*, 2004).
pub(super) fn below(x: f64) -> f64 {
    if x.abs() > EDGE {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > f64::EPSILON * sum.abs() {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * PI).sqrt()
}

/// The quantile function, within ±8. Uses bisection, so it is as accurate as [`below`].
pub(super) fn quantile(chance: f64) -> f64 {
    let (mut low, mut high) = (-EDGE, EDGE);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if below(middle) < chance { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_tables() {
        // Abramowitz and Stegun, table 26.1.
        for (x, expected) in [
            (0.0, 0.5),
            (1.0, 0.841_344_746_068_543),
            (2.0, 0.977_249_868_051_821),
            (-3.0, 0.001_349_898_031_630_1),
            (4.0, 0.999_968_328_758_167),
        ] {
            assert!((below(x) - expected).abs() < 1e-14, "{x}: {}", below(x));
        }
        assert_eq!((below(9.0), below(-9.0)), (1.0, 0.0));
        assert!((quantile(0.975) - 1.959_963_984_540_054).abs() < 1e-12);
        assert!((quantile(0.5)).abs() < 1e-15);
    }

    #[test]
    fn the_quantile_is_the_inverse() {
        for step in 1..200 {
            let chance = f64::from(step) / 200.0;
            assert!((below(quantile(chance)) - chance).abs() < 1e-14);
            assert!((quantile(chance) + quantile(1.0 - chance)).abs() < 1e-12);
        }
    }
}
