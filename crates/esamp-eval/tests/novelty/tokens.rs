//! Correlations over single tokens.

use super::*;

#[test]
fn a_planted_correlation_with_novelty_is_found() {
    let records = tokens(|token, _| token.novelty = token.surprisal);
    let level = token_level(&all(&records), &plain(), &intervals()).unwrap();
    assert_eq!((level.n, level.problems), (4000, 10));
    let with = |measure| find(&level, Measure::Novelty, measure);
    let surprisal = with(Measure::Surprisal);
    for known in [&surprisal.spearman, &surprisal.partial, &surprisal.within] {
        let interval = known.as_ref().unwrap();
        for end in [interval.low, interval.estimate, interval.high] {
            assert!((end - 1.0).abs() < 1e-9, "{interval:?}");
        }
    }
    for other in [Measure::Entropy, Measure::FrequencyRank, Measure::TokenId, Measure::Position] {
        assert!(estimate(&with(other).spearman).abs() < CHANCE);
        // With surprisal held fixed nothing of novelty remains: the result is undefined, not 0.
        assert_eq!(
            text(&with(other).partial),
            "novelty, with the controls fixed: expected values that differ, got none that do"
        );
    }
    for measure in [Measure::Surprisal, Measure::Position] {
        let relative = find(&level, Measure::RelativeNovelty, measure);
        assert!(
            estimate(&relative.spearman).abs() < CHANCE,
            "nothing is planted in relative novelty"
        );
    }
    assert_eq!(
        surprisal.given,
        [Measure::Entropy, Measure::FrequencyRank, Measure::Position],
        "the id is not a control"
    );
}

/// Entropy correlates with novelty only because both correlate with surprisal; the partial correlation
/// shows this.
#[test]
fn a_spurious_correlation_is_told_apart() {
    let records = tokens(|token, numbers| {
        token.novelty = token.surprisal + numbers.share();
        token.reference_entropy = token.surprisal + numbers.share();
    });
    let level = token_level(&all(&records), &plain(), &intervals()).unwrap();
    let entropy = find(&level, Measure::Novelty, Measure::Entropy);
    assert!(estimate(&entropy.spearman) > 0.9);
    assert!(estimate(&entropy.partial).abs() < CHANCE, "{entropy:?}");
    assert!(estimate(&entropy.within).abs() < CHANCE, "{entropy:?}");
    let surprisal = find(&level, Measure::Novelty, Measure::Surprisal);
    assert!(estimate(&surprisal.partial) > 0.5, "{surprisal:?}");
}

#[test]
fn rarity_is_the_rank_among_a_plain_arms_tokens() {
    // With the default arm ids equal ranks; an arm with the opposite frequencies reverses them.
    let records = tokens(|token, _| {
        token.novelty = f64::from(token.token);
        token.relative_novelty = token.position as f64;
    });
    let said: Vec<TokenId> = (0..300).flat_map(|token| vec![token; 1 + token as usize]).collect();
    let turned = FrequencyRanks::count(&[group(0, 0, &[said])]);
    for (ranks, sign) in [(plain(), 1.0), (turned, -1.0)] {
        let level = token_level(&all(&records), &ranks, &intervals()).unwrap();
        let rho = |of, with| estimate(&find(&level, of, with).spearman);
        assert!((rho(Measure::Novelty, Measure::FrequencyRank) - sign).abs() < 1e-9);
        assert!((rho(Measure::Novelty, Measure::TokenId) - 1.0).abs() < 1e-9);
        assert!((rho(Measure::RelativeNovelty, Measure::Position) - 1.0).abs() < 1e-9);
        let id = find(&level, Measure::Novelty, Measure::TokenId);
        assert!(
            (estimate(&id.partial) - 1.0).abs() < 1e-9,
            "the rank is not held fixed for the id"
        );
    }
}

/// The estimates equal those of the library's functions over all tokens of all records.
#[test]
fn estimates_are_those_of_all_tokens() {
    let records = tokens(|token, numbers| {
        token.relative_novelty += 0.2 * token.surprisal + 0.01 * token.position as f64;
        token.reference_entropy += numbers.share() * token.surprisal;
    });
    let level = token_level(&all(&records), &plain(), &intervals()).unwrap();
    let column = |number: fn(&TokenRecord) -> f64| -> Vec<f64> {
        records.iter().flat_map(|record| &record.token_sample).map(number).collect()
    };
    let relative = column(|token| token.relative_novelty);
    let columns = [
        (Measure::Surprisal, column(|token| token.surprisal)),
        (Measure::Entropy, column(|token| token.reference_entropy)),
        (Measure::FrequencyRank, column(|token| f64::from(token.token))),
        (Measure::Position, column(|token| token.position as f64)),
    ];
    for (at, (measure, values)) in columns.iter().enumerate() {
        let found = find(&level, Measure::RelativeNovelty, *measure);
        let mut controls = columns.to_vec();
        controls.remove(at);
        let controls: Vec<Vec<f64>> = controls.into_iter().map(|(_, values)| values).collect();
        let plain = spearman(&relative, values).unwrap();
        let partial = partial_spearman(&relative, values, &controls).unwrap();
        assert!((estimate(&found.spearman) - plain).abs() < 1e-9, "{measure}");
        assert!((estimate(&found.partial) - partial).abs() < 1e-9, "{measure}");
    }
}

/// Problems differ a lot, with the opposite correlation within them: the plain correlation reflects the
/// problems, and is as uncertain as ten problems are.
#[test]
fn intervals_count_problems_and_problems_can_be_held_fixed() {
    let mut numbers = Numbers::new(3);
    let mut records = tokens(|_, _| {});
    for record in &mut records {
        let level = 10.0 * numbers.share();
        for token in &mut record.token_sample {
            let own = numbers.share();
            token.novelty = level + own;
            token.surprisal =
                level - own + 0.1 * numbers.share() + 3.0 * (record.problem % 3) as f64;
        }
    }
    let by_problem = token_level(&all(&records), &plain(), &intervals()).unwrap();
    let found = find(&by_problem, Measure::Novelty, Measure::Surprisal);
    assert!(estimate(&found.spearman) > 0.3, "{found:?}");
    assert!(found.within.as_ref().unwrap().high < -0.3, "{found:?}");
    let width = |known: &Known| known.as_ref().unwrap().high - known.as_ref().unwrap().low;
    let clustered = width(&found.spearman);
    // The same tokens, each as a problem of its own.
    let mut alone = Vec::new();
    for token in records.iter().flat_map(|record| &record.token_sample) {
        let mut record = group(alone.len(), 0, &[]);
        record.token_sample.push(*token);
        alone.push(record);
    }
    let by_token = token_level(&all(&alone), &plain(), &intervals()).unwrap();
    let found = find(&by_token, Measure::Novelty, Measure::Surprisal);
    assert!(clustered > 4.0 * width(&found.spearman), "{clustered}: {found:?}");
    // Seeds of a problem are the same problem.
    let mut seeds = records.clone();
    for record in &mut seeds {
        (record.problem, record.seed) = (record.problem % 5, 1);
    }
    assert_eq!(token_level(&all(&seeds), &plain(), &intervals()).unwrap().problems, 5);
}

#[test]
fn each_correlation_with_a_constant_is_refused() {
    let records = tokens(|token, _| token.surprisal = 2.0);
    let level = token_level(&all(&records), &plain(), &intervals()).unwrap();
    let surprisal = find(&level, Measure::Novelty, Measure::Surprisal);
    assert_eq!(
        text(&surprisal.spearman),
        "surprisal: expected values that differ, got none that do"
    );
    let position = find(&level, Measure::Novelty, Measure::Position);
    assert!(estimate(&position.partial).abs() < CHANCE, "a constant control has no effect");
    let equal = tokens(|token, _| *token = TOKEN);
    let level = token_level(&all(&equal), &plain(), &intervals()).unwrap();
    for found in &level.correlations {
        for known in [&found.spearman, &found.partial, &found.within] {
            assert!(matches!(known, Err(MetricError::Constant { .. })), "{found:?}");
        }
    }
    let refused = |records: &[ProblemRecord]| {
        token_level(&all(records), &plain(), &intervals()).unwrap_err().to_string()
    };
    assert_eq!(refused(&[]), "tokens: expected at least 10, got 0");
    assert_eq!(refused(&records[..1]), "problems: expected at least 2, got 1");
    let mut broken = records.clone();
    broken[1].token_sample[3].novelty = f64::NAN;
    assert_eq!(refused(&broken), "novelty, value 403: expected a finite number, got NaN");
}
