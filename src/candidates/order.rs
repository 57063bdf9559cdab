//! Best first.

use super::Candidate;

/// Fewer candidates than this are compared; more are counted, in time proportional to their number.
const MANY: usize = 2048;

/// Bits of a score that one pass of [`count`] looks at.
const DIGIT: u32 = 11;

/// Sorts by falling logit, then by rising token.
pub(super) fn sort(items: &mut Vec<Candidate>) {
    match items.len() {
        0..MANY => items.sort_unstable_by_key(place),
        _ => count(items),
    }
}

/// The key that puts them in this order: one integer.
pub(super) fn place(candidate: &Candidate) -> u64 {
    u64::from(falling(candidate.logit)) << 32 | u64::from(candidate.token)
}

/// Finite floats compare like their bits, once those of negative ones are turned round; here so that the largest comes
/// first.
fn falling(logit: f32) -> u32 {
    // + 0.0 makes −0.0 and 0.0 the same number, as they are.
    let bits = (logit + 0.0).to_bits();
    if bits >> 31 == 0 { !(bits | 1 << 31) } else { bits }
}

/// Sorts by one digit of the score after the other, the lowest first. Each pass keeps the order of equal digits, which the
/// passes before it have made.
fn count(items: &mut Vec<Candidate>) {
    const PLACES: usize = 1 << DIGIT;
    let digit = |key: u64, pass: u32| (key >> (32 + pass * DIGIT)) as usize & (PLACES - 1);
    // The score in the upper half, the place in `items` in the lower.
    let scored = items.iter().enumerate();
    let mut keys: Vec<u64> =
        scored.map(|(at, c)| u64::from(falling(c.logit)) << 32 | at as u64).collect();
    let mut sorted = vec![0; keys.len()];
    for pass in 0..u32::BITS.div_ceil(DIGIT) {
        let mut next = [0; PLACES];
        keys.iter().for_each(|&key| next[digit(key, pass)] += 1);
        let mut before = 0;
        for place in &mut next {
            before += std::mem::replace(place, before);
        }
        for &key in &keys {
            let place = &mut next[digit(key, pass)];
            sorted[*place] = key;
            *place += 1;
        }
        std::mem::swap(&mut keys, &mut sorted);
    }
    *items = keys.iter().map(|&key| items[key as u32 as usize]).collect();
    // Equal scores are in the order in which they came.
    let equal = items.chunk_by_mut(|a, b| a.logit == b.logit);
    equal.filter(|run| run.len() > 1).for_each(|run| run.sort_unstable_by_key(|c| c.token));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(token: u32, logit: f32) -> Candidate {
        Candidate { token, logit, reference: logit, expected: 0.5 }
    }

    #[test]
    fn keys_fall_as_scores_rise() {
        let rising = [f32::MIN, -1.0, -f32::MIN_POSITIVE, 0.0, f32::MIN_POSITIVE, 1.0, f32::MAX];
        assert!(rising.windows(2).all(|pair| falling(pair[0]) > falling(pair[1])));
        assert_eq!(falling(-0.0), falling(0.0));
    }

    proptest! {
        /// Few different scores, so that there are ties, and tokens in any order.
        #[test]
        fn it_is_the_order_by_comparison(
            logits in prop::collection::vec(
                prop_oneof![(-9i32..9).prop_map(|i| i as f32 * 0.5), -30.0f32..30.0, Just(-0.0f32)],
                1..MANY + 500,
            ),
            turn in 0usize..5000,
        ) {
            let len = logits.len();
            let mut items: Vec<Candidate> =
                logits.iter().enumerate().map(|(at, &l)| candidate(at as u32, l)).collect();
            items.rotate_left(turn % len);
            let mut compared = items.clone();
            compared.sort_by(|a, b| {
                b.logit.partial_cmp(&a.logit).unwrap().then(a.token.cmp(&b.token))
            });
            let mut counted = items.clone();
            count(&mut counted);
            prop_assert_eq!(&counted, &compared);
            sort(&mut items);
            prop_assert_eq!(&items, &compared);
        }
    }
}
