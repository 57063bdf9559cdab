//! The exponential function without a call, so that the compiler can vectorise it.

/// Returns `eˣ` for `x ≤ 0` with a relative error below 3e-7, and 0 below −87.
#[inline(always)]
pub(crate) fn exp_of_negative(x: f32) -> f32 {
    // 1.5·2²³. Adding it rounds to an integer, which is in the low bits of the sum. Subtracting it again gives that
    // integer as a float.
    const ROUND: f32 = 12_582_912.0;
    // At −87, n is −126, the smallest exponent of a normal number. Below that, the bits would not be a power of two.
    let clamped = if x > -87.0 { x } else { -87.0 };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    // ln 2 in two parts: the first has so few significant bits that its product with n is exact.
    let r = (clamped - n * 0.693_359_4) - n * -2.121_944_4e-4;
    // The Taylor series by Horner's rule. As |r| ≤ ½ ln 2, the first omitted term, r⁷/5040, is at most 1.2e-7, about
    // the precision of f32.
    let poly = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]
        .into_iter()
        .fold(0.0, |sum, coefficient| sum * r + coefficient);
    // Uses the bits instead of an `as` cast, whose check for out-of-range values would prevent vectorisation.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    if x > -87.0 { poly * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_exp() {
        for i in 0..200_000 {
            let x = -(i as f32) * 4.3e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_of_negative(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "exp({x}): {error:e}");
        }
        let least = f64::from(exp_of_negative(-86.999)) / (-86.999f64).exp();
        assert!((least - 1.0).abs() < 1e-5, "{least}");
        assert_eq!(exp_of_negative(f32::NAN), 0.0, "NaN gives 0: callers check for it before");
        assert_eq!(exp_of_negative(0.0), 1.0);
        assert_eq!(exp_of_negative(-87.1), 0.0);
        assert_eq!(exp_of_negative(f32::NEG_INFINITY), 0.0);
    }
}
