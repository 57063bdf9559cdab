//! Sorting candidates, best first.

use super::Candidate;

/// Below this number of candidates a comparison sort is used; from it on, a radix sort in linear time.
const MANY: usize = 2048;

/// Bits of a score that one pass of [`count`] sorts by.
// Eleven bits take three passes over a 32-bit score, with counters of 16 KB, which fit into the L1 cache. Sixteen
// would take two passes, but counters of 512 KB.
const DIGIT: u32 = 11;

/// Sorts by descending logit, then by ascending token.
pub(super) fn sort(items: &mut Vec<Candidate>) {
    match items.len() {
        0..MANY => items.sort_unstable_by_key(place),
        _ => count(items),
    }
}

/// The sort key of a candidate as one integer.
pub(super) fn place(candidate: &Candidate) -> u64 {
    u64::from(falling(candidate.logit)) << 32 | u64::from(candidate.token)
}

/// Maps a finite float to bits that sort in descending order of its value. The bits of positive floats already
/// compare like their values; those of negative floats compare in reverse.
fn falling(logit: f32) -> u32 {
    // Adding 0.0 turns −0.0 into 0.0, so that both get the same key.
    let bits = (logit + 0.0).to_bits();
    if bits >> 31 == 0 { !(bits | 1 << 31) } else { bits }
}

/// Least-significant-digit radix sort of the scores. Each pass is stable, so it preserves the order of the previous
/// ones.
fn count(items: &mut Vec<Candidate>) {
    const PLACES: usize = 1 << DIGIT;
    let digit = |key: u64, pass: u32| (key >> (32 + pass * DIGIT)) as usize & (PLACES - 1);
    // Upper half: the score. Lower half: the index in `items`.
    // The keys are moved in every pass, the larger candidates only once at the end.
    let scored = items.iter().enumerate();
    let mut keys: Vec<u64> =
        scored.map(|(at, c)| u64::from(falling(c.logit)) << 32 | at as u64).collect();
    let mut sorted = vec![0; keys.len()];
    for pass in 0..u32::BITS.div_ceil(DIGIT) {
        let mut next = [0; PLACES];
        for &key in &keys {
            next[digit(key, pass)] += 1;
        }
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
    // Ties are still in input order; sort them by token.
    let equal = items.chunk_by_mut(|a, b| a.logit == b.logit);
    for run in equal.filter(|run| run.len() > 1) {
        run.sort_unstable_by_key(|c| c.token);
    }
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
        /// Few distinct scores, so that there are ties, and tokens in any order.
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
