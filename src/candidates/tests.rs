//! Tests of candidates without filters.

use super::*;

fn tokens(candidates: &Candidates) -> Vec<TokenId> {
    candidates.as_slice().iter().map(|c| c.token).collect()
}

#[test]
fn best_first_and_ties_by_token() {
    let candidates = Candidates::from_logits(&[1.0, -0.0, 3.0, 0.0, 1.0, -2.5]).unwrap();
    assert_eq!(tokens(&candidates), [2, 0, 4, 1, 3, 5]);
}

#[test]
fn rejecting_all_candidates_keeps_the_best() {
    let mut candidates = Candidates::from_logits(&[1.0, 2.0]).unwrap();
    candidates.retain(|_| false);
    assert_eq!(tokens(&candidates), [1]);
    candidates.truncate(0);
    assert_eq!(tokens(&candidates), [1]);
}

#[test]
fn rescoring_reorders_and_remembers_an_invalid_score() {
    let mut candidates = Candidates::from_logits(&[1.0, 2.0, 3.0]).unwrap();
    candidates.rescore(|c| -c.logit);
    assert_eq!(tokens(&candidates), [0, 1, 2]);
    assert_eq!(candidates.refused(), None);
    candidates.rescore(|c| if c.token == 1 { f32::INFINITY } else { c.logit });
    assert_eq!(candidates.refused(), Some(RowError::Score { token: 1, got: f32::INFINITY }));
}

#[test]
fn the_reference_follows_the_temperature_but_not_rescoring() {
    let mut candidates = Candidates::from_logits(&[1.0, 2.0, 3.0]).unwrap();
    candidates.divide(2.0);
    candidates.rescore(|c| -c.logit);
    candidates.rescore(|c| c.logit + 7.0);
    let scores: Vec<_> =
        candidates.as_slice().iter().map(|c| (c.token, c.logit, c.reference)).collect();
    assert_eq!(scores, [(0, 6.5, 0.5), (1, 6.0, 1.0), (2, 5.5, 1.5)]);
}

#[test]
fn probabilities_are_those_of_the_candidates() {
    let candidates = Candidates::from_logits(&[0.0, 3.0f32.ln(), f32::NEG_INFINITY]).unwrap();
    let p = candidates.probabilities();
    assert_eq!(p.len(), 2);
    assert!((p[0] - 0.75).abs() < 1e-7 && (p[1] - 0.25).abs() < 1e-7);
    for (log, p) in candidates.log_probabilities().iter().zip(p) {
        assert!((log - p.ln()).abs() < 1e-12);
    }
    let far = Candidates::from_logits(&[0.0, -2000.0]).unwrap();
    assert_eq!(far.probabilities()[1], 0.0);
    assert_eq!(far.log_probabilities()[1], -2000.0);
}

#[test]
fn adjustments_are_added_to_the_expected_logits_too() {
    let mut candidates = Candidates::from_logits(&[1.0, 2.0, 3.0]).unwrap();
    candidates.set_adjustments(vec![(0, -4.0), (2, 0.5)]);
    assert!(candidates.set_expected(|place, token| 10.0 * place as f32 + token as f32));
    let expected: Vec<f32> = candidates.as_slice().iter().map(|c| c.expected).collect();
    assert_eq!(expected, [2.5, 11.0, 16.0]);
    candidates.set_adjustments(vec![(1, f32::NEG_INFINITY)]);
    assert!(!candidates.set_expected(|_, _| 0.0));
}

#[test]
fn scores_are_given_what_was_added_to_them() {
    let mut candidates = Candidates::from_logits(&[1.0, 2.0, 3.0]).unwrap();
    candidates.set_adjustments(vec![(0, -4.0), (2, 0.5)]);
    candidates.rescore_adjusted(|c, added| 10.0 * c.logit + added);
    let scores: Vec<_> = candidates.as_slice().iter().map(|c| (c.token, c.logit)).collect();
    assert_eq!(scores, [(2, 30.5), (1, 20.0), (0, 6.0)]);
    assert_eq!(candidates.adjustments(), [(0, -4.0), (2, 0.5)], "they stay for what comes after");
}

#[test]
fn filtering_ends_with_the_mass_on_the_candidates_alone() {
    let reach = Reach::Probability(0.1); // leaves the last token, of 0.05, out
    let logits = [0.7f32, 0.25, 0.05].map(f32::ln);
    let mut candidates = pool(&logits, 1.0, None, reach, true).unwrap();
    let of = |candidates: &Candidates| -> Vec<f32> {
        candidates.probabilities().iter().map(|p| (p * 1e4).round() as f32 / 1e4).collect()
    };
    assert_eq!(of(&candidates), [0.7, 0.25], "filters see the probabilities of the whole row");
    assert!(candidates.row_stats().is_some());
    candidates.end_filtering();
    assert_eq!(of(&candidates), [0.7368, 0.2632]); // 14/19 and 5/19
    assert_eq!(candidates.row_stats(), None);
}
