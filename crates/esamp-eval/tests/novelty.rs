//! "Is it novelty?", a part of the report of `evaluate`, on records whose answers are known.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;

use esamp::{Counters, TokenId, errors::TextError};
use esamp_eval::{
    metrics::{BootstrapConfig, MetricError, partial_spearman, spearman},
    record::{CompletionRecord, FrequencyRanks, ProblemRecord, TokenRecord, Totals},
    report::{
        novelty::{
            Correlation, Known, Level, MAX_GROUPS, Measure, WINDOW, WindowLevel, intervals,
            token_level, window_level,
        },
        novelty_plot::novelty_figure,
    },
};
use esamp_programs::failure::Failure;
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

fn group(problem: usize, seed: u64, completions: &[Vec<TokenId>]) -> ProblemRecord {
    ProblemRecord {
        task: "stories".into(),
        problem,
        arm: "esamp-0.5".into(),
        seed,
        prompt: String::new(),
        prompt_tokens: 1,
        expected: None,
        solutions: None,
        completions: completions.iter().map(|tokens| completion(tokens)).collect(),
        totals: Totals::default(),
        batch_counters: Counters::default(),
        token_sample: Vec::new(),
    }
}

fn completion(tokens: &[TokenId]) -> CompletionRecord {
    CompletionRecord {
        text: String::new(),
        tokens: tokens.to_vec(),
        finish: "max_new_tokens".into(),
        correct: None,
        answer: None,
        mode: None,
        log_prob_sum: 0.0,
        sampling_log_prob_sum: 0.0,
        mean_entropy: 0.0,
        mean_reference_entropy: 0.0,
        mean_kl: 0.0,
        mean_candidates: 0.0,
        mean_novelty: None,
        mean_relative_novelty: None,
        mean_slope: None,
        mean_sharpening: None,
    }
}

const TOKEN: TokenRecord = TokenRecord {
    completion: 0,
    position: 1,
    token: 0,
    novelty: 1.0,
    relative_novelty: 1.0,
    surprisal: 1.0,
    reference_entropy: 1.0,
};

struct Numbers(ChaCha8Rng);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    /// In `[0, 1)`.
    fn share(&mut self) -> f64 {
        self.below(1 << 53) as f64 / (1u64 << 53) as f64
    }
}

/// Ten problems of 400 tokens each, independent of each other in everything, changed by `plant`.
fn tokens(plant: impl Fn(&mut TokenRecord, &mut Numbers)) -> Vec<ProblemRecord> {
    let mut numbers = Numbers::new(11);
    let mut records = Vec::new();
    for problem in 0..10 {
        let mut record = group(problem, 0, &[]);
        for _ in 0..400 {
            let mut token = TokenRecord {
                completion: 0,
                position: 1 + numbers.below(95),
                token: numbers.below(300) as TokenId,
                novelty: 40.0 + numbers.share(),
                relative_novelty: numbers.share(),
                surprisal: 5.0 * numbers.share(),
                reference_entropy: 3.0 * numbers.share(),
            };
            plant(&mut token, &mut numbers);
            record.token_sample.push(token);
        }
        records.push(record);
    }
    records
}

fn all(records: &[ProblemRecord]) -> Vec<&ProblemRecord> {
    records.iter().collect()
}

/// A plain arm in which token `t` occurs `300 − t` times, so that its rank is `t`.
fn plain() -> FrequencyRanks {
    let said: Vec<TokenId> = (0..300).flat_map(|token| vec![token; 300 - token as usize]).collect();
    FrequencyRanks::count(&[group(0, 0, &[said])])
}

fn find(level: &Level, of: Measure, with: Measure) -> &Correlation {
    let mut found = level.correlations.iter().filter(|it| it.of == of && it.with == with);
    let correlation = found.next().unwrap();
    assert!(found.next().is_none(), "{of} with {with}: expected once");
    correlation
}

fn estimate(known: &Known) -> f64 {
    known.as_ref().unwrap().estimate
}

fn text(known: &Known) -> String {
    known.as_ref().unwrap_err().to_string()
}

/// Independent: four standard deviations of a rank correlation of 4,000 pairs.
const CHANCE: f64 = 4.0 / 63.0;

#[test]
fn what_novelty_is_made_of_is_found() {
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
        // Surprisal, held fixed, leaves nothing of novelty: no number, and not 0.
        assert_eq!(
            text(&with(other).partial),
            "novelty, with the controls fixed: expected values that differ, got none that do"
        );
    }
    for measure in [Measure::Surprisal, Measure::Position] {
        let relative = find(&level, Measure::RelativeNovelty, measure);
        assert!(estimate(&relative.spearman).abs() < CHANCE, "the other one is not planted");
    }
    assert_eq!(
        surprisal.given,
        [Measure::Entropy, Measure::FrequencyRank, Measure::Position],
        "the id is no control"
    );
}

/// Entropy goes along with novelty because both go along with surprisal: the partial correlation says so.
#[test]
fn what_only_seems_to_matter_is_told_apart() {
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
    // Ids are ranks here; among the tokens of an arm that says them the other way round, they are not.
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
        assert!((estimate(&id.partial) - 1.0).abs() < 1e-9, "the rank is not held fixed for it");
    }
}

/// The same numbers as from the functions of the library, over all tokens of all records.
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

/// Problems differ a lot, and in them it is the other way round: the plain correlation sees the problems, and is as uncertain
/// as ten problems are.
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
    // The same tokens, as if each were a problem of its own.
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
    seeds.iter_mut().for_each(|record| (record.problem, record.seed) = (record.problem % 5, 1));
    assert_eq!(token_level(&all(&seeds), &plain(), &intervals()).unwrap().problems, 5);
}

#[test]
fn what_does_not_vary_is_refused_one_by_one() {
    let records = tokens(|token, _| token.surprisal = 2.0);
    let level = token_level(&all(&records), &plain(), &intervals()).unwrap();
    let surprisal = find(&level, Measure::Novelty, Measure::Surprisal);
    assert_eq!(
        text(&surprisal.spearman),
        "surprisal: expected values that differ, got none that do"
    );
    let position = find(&level, Measure::Novelty, Measure::Position);
    assert!(estimate(&position.partial).abs() < CHANCE, "as a control it does no harm");
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

/// The words of a text are its tokens.
fn words(tokens: &[TokenId]) -> Result<String, TextError> {
    Ok(tokens.iter().map(|token| format!("{token} ")).collect())
}

/// A text points where its last word says, in degrees.
fn compass(texts: &[String]) -> Result<Vec<Vec<f64>>, Failure> {
    let point = |text: &String| {
        let degrees: f64 = text.split_whitespace().last().unwrap().parse().unwrap();
        vec![degrees.to_radians().cos(), degrees.to_radians().sin()]
    };
    Ok(texts.iter().map(point).collect())
}

fn windows(records: &[ProblemRecord], max_groups: usize) -> Result<WindowLevel, String> {
    let config = intervals().with_resamples(50);
    let found = window_level(&all(records), &plain(), &words, &mut compass, max_groups, &config);
    found.map_err(|error| error.to_string())
}

/// A completion whose windows each end with a degree: `degrees[w]` at the last place of window `w`, from the beginning.
fn turning(degrees: &[TokenId]) -> Vec<TokenId> {
    degrees.iter().flat_map(|&degree| [vec![500; WINDOW - 1], vec![degree]].concat()).collect()
}

/// A token at each place of each completion but the first, whose novelty is what `novelty` says.
fn sample(record: &mut ProblemRecord, novelty: impl Fn(usize, usize) -> f64) {
    for (at, completion) in record.completions.iter().enumerate() {
        for position in 1..completion.tokens.len() {
            let novelty = novelty(at, position);
            record.token_sample.push(TokenRecord {
                completion: at,
                position: position as u64,
                token: completion.tokens[position],
                novelty,
                relative_novelty: novelty,
                ..TOKEN
            });
        }
    }
}

/// Two problems of five windows each, by hand.
#[test]
fn a_windows_distance_is_that_to_the_nearest_text_said_before_it() {
    // Windows are counted from place 16 on. Completion 0 turns to 0°, 90°, 180°; completion 1 to 60°, 60°; completion 2 has
    // ended at 120°.
    let said = [turning(&[0, 90, 180]), turning(&[60, 60]), turning(&[120])];
    let mut first = group(0, 0, &said);
    // Novelty: by completion and window, to tell them apart in deciles.
    sample(&mut first, |completion, position| (10 * completion + position / WINDOW) as f64);
    // The same with one more window that ends a token early, and an end token that says nothing.
    let mut longer = turning(&[0, 90, 180, 77]);
    longer.pop();
    let mut second = group(1, 0, &[longer, turning(&[60, 60]), turning(&[120])]);
    second.completions[1].tokens.push(2);
    second.completions[1].finish = "stop_token".into();
    sample(&mut second, |completion, position| (100 + 10 * completion + position / WINDOW) as f64);
    let found = windows(&[first, second], 30);
    assert_eq!(found, Err("windows: expected at least 10, got 6".to_owned()));

    let mut records = Vec::new();
    for problem in 0..4 {
        let mut record = group(problem, 0, &said);
        sample(&mut record, |completion, position| {
            (100 * problem + 10 * completion + position / WINDOW) as f64
        });
        records.push(record);
    }
    // The fourth problem has one window only: its completions 1 and 2 have ended before place 16.
    records[3].completions.truncate(1);
    records[3].completions.push(completion(&[60; 9]));
    records[3].completions.push(completion(&[60; 15]));
    records[3].completions[0].tokens.truncate(2 * WINDOW);
    let found = windows(&records, 30).unwrap();
    assert_eq!((found.groups, found.all_groups, found.windows, found.left_out), (4, 4, 10, 0));
    assert_eq!((found.during.n, found.before.n, found.during.problems), (10, 10, 4));
    // In the order of novelty: 90° from the nearest of 60° and 120° (what they have said in 16 places), 180° from the nearest
    // of 60° (said by place 32) and 120°, 60° from the nearest of 0° and 120°.
    let cosine = |degrees: f64| degrees.to_radians().cos();
    let nearest = [30.0, 60.0, 60.0].map(|degrees| 1.0 - cosine(degrees));
    let mean = [(30.0, 30.0), (120.0, 60.0), (60.0, 60.0)]
        .map(|(a, b)| 1.0 - f64::midpoint(cosine(a), cosine(b)));
    let of = |measure| found.during.deciles.summaries(measure).unwrap();
    let (got, got_mean) = (of(Measure::Distance), of(Measure::MeanDistance));
    for window in 0..9 {
        assert!((got[window].mean - nearest[window % 3]).abs() < 1e-12, "{window}: {got:?}");
        assert!((got_mean[window].mean - mean[window % 3]).abs() < 1e-12, "{window}: {got_mean:?}");
    }
    // 90° from 60°, which both have said.
    assert!((got[9].mean - nearest[0]).abs() < 1e-12);
    assert!((got_mean[9].mean - nearest[0]).abs() < 1e-12);
    // 16 places from 16 on: their mean is 23.5. The 15 tokens before, without place 0: 8.
    let places = |level: &Level| {
        level.deciles.summaries(Measure::Position).unwrap().iter().map(|it| it.mean).collect()
    };
    let (during, before): (Vec<f64>, Vec<f64>) = (places(&found.during), places(&found.before));
    assert_eq!(during[..3], [23.5, 39.5, 23.5]);
    assert_eq!(before[..3], [8.0, 23.5, 8.0]);
}

/// Whole windows only; and which texts are embedded, each once.
#[test]
fn windows_begin_and_end_where_they_should() {
    let lengths = |lengths: &[usize]| -> Vec<Vec<TokenId>> {
        let tokens = |(at, &length): (usize, &usize)| vec![at as TokenId; length];
        lengths.iter().enumerate().map(tokens).collect()
    };
    let count = |lengths: &[Vec<TokenId>], finish: &str| {
        let mut record = group(0, 0, lengths);
        record.completions.iter_mut().for_each(|it| it.finish = finish.to_owned());
        let mut seen = Vec::new();
        let mut embed = |texts: &[String]| {
            seen.extend(texts.iter().map(|text| text.split_whitespace().count()));
            compass(texts)
        };
        let config = BootstrapConfig::default();
        let error = window_level(&[&record], &plain(), &words, &mut embed, 1, &config).unwrap_err();
        (error.to_string(), seen)
    };
    let none = "windows: expected at least 10, got 0".to_owned();
    for (length, of) in [(0, 0), (15, 0), (31, 0), (32, 1), (47, 1), (48, 2)] {
        let (_, seen) = count(&lengths(&[length, 5]), "max_new_tokens");
        // The windows of completion 0 are all the same text, and so is what completion 1 has said by then.
        assert_eq!(seen.len(), if of == 0 { 0 } else { 2 }, "{length}: {seen:?}");
    }
    let (error, seen) = count(&lengths(&[32, 5]), "stop_token");
    assert_eq!((error, seen), (none.clone(), vec![]), "the stop token is no text");
    let (_, seen) = count(&lengths(&[33, 6]), "stop_token");
    assert_eq!(seen, [16, 5]);
    // Alone in its group, or with those who have said nothing.
    for said in [&[96][..], &[96, 0, 0], &[]] {
        let (error, seen) = count(&lengths(said), "max_new_tokens");
        assert_eq!((error, seen), (none.clone(), vec![]));
    }
}

/// Groups of two: who says what a window's novelty is to be planted from, and what it is by a naive count.
fn planted(before: bool) -> Vec<ProblemRecord> {
    let mut numbers = Numbers::new(5);
    let mut records = Vec::new();
    for problem in 0..12 {
        let degrees = [(); 2].map(|()| [(); 6].map(|()| numbers.below(170) as TokenId));
        let mut record = group(problem, 0, &degrees.map(|degrees| turning(&degrees)));
        sample(&mut record, |completion, position| {
            let window = position / WINDOW + usize::from(before);
            let own = degrees[completion].get(window);
            let other = window.checked_sub(1).and_then(|last| degrees[1 - completion].get(last));
            let apart = own.zip(other).map(|(&own, &other)| f64::from(own) - f64::from(other));
            apart.map_or(0.0, f64::abs) // as the distance 1 − cos, it rises with the angle
        });
        records.push(record);
    }
    records
}

#[test]
fn novelty_that_is_semantic_distance_is_found_in_the_window_or_before_it() {
    for ahead in [false, true] {
        let found = windows(&planted(ahead), 30).unwrap();
        assert_eq!((found.windows, found.during.n, found.before.n), (120, 120, 120));
        let rho =
            |level: &Level| estimate(&find(level, Measure::Novelty, Measure::Distance).spearman);
        let (planted, other) = match ahead {
            false => (&found.during, &found.before),
            true => (&found.before, &found.during),
        };
        // Equal angles, whose cosines differ by rounding: not quite 1.
        assert!(rho(planted) > 0.999, "{ahead}: {}", rho(planted));
        assert!(rho(other).abs() < 0.5, "{ahead}: {}", rho(other));
        // Surprisal and entropy are equal everywhere, ranks and places are not: nothing of it is explained.
        let partial = find(planted, Measure::RelativeNovelty, Measure::Distance);
        assert!(estimate(&partial.partial) > 0.999, "{partial:?}");
        let surprisal = find(planted, Measure::Surprisal, Measure::Distance);
        assert!(text(&surprisal.partial).starts_with("surprisal, with the controls fixed: "));
    }
}

#[test]
fn groups_are_taken_seed_by_seed_and_tokens_may_be_missing() {
    let mut records = planted(false);
    let mut again = records.clone();
    again.iter_mut().for_each(|record| record.seed = 1);
    records.splice(0..0, again);
    let found = windows(&records, 12).unwrap();
    assert_eq!((found.groups, found.all_groups, found.windows), (12, 24, 120));
    assert_eq!(found.during.problems, 12, "one seed of each, not both of six");
    let all = windows(&records, MAX_GROUPS).unwrap();
    assert_eq!((all.groups, all.during.n, all.during.problems), (24, 240, 12));
    // Without the tokens of places 32 to 47, window 2 has nothing during it, and window 3 nothing before it.
    for record in &mut records {
        record.token_sample.retain(|token| !(32..48).contains(&token.position));
    }
    let found = windows(&records, 12).unwrap();
    assert_eq!((found.windows, found.during.n, found.before.n), (120, 96, 96));
}

#[test]
fn what_has_no_text_or_no_embedding_is_said() {
    let records = planted(false);
    let config = intervals().with_resamples(20);
    let silent = |tokens: &[TokenId]| match tokens.len() == WINDOW {
        true => Ok(" \n".to_owned()),
        false => words(tokens),
    };
    let found = window_level(&all(&records), &plain(), &silent, &mut compass, 30, &config);
    assert_eq!(found.unwrap_err().to_string(), "windows: expected at least 10, got 0");
    let broken = |_: &[TokenId]| Err(TextError::new("no such token"));
    let found = window_level(&all(&records), &plain(), &broken, &mut compass, 30, &config);
    assert_eq!(found.unwrap_err().to_string(), "text of a window: detokenizer: no such token");
    let mut fewer = |texts: &[String]| compass(&texts[1..]);
    let found = window_level(&all(&records), &plain(), &words, &mut fewer, 30, &config);
    let message = found.unwrap_err().to_string();
    assert!(message.starts_with("embeddings: expected "), "{message}");
    let mut none = |texts: &[String]| Ok(vec![vec![0.0]; texts.len()]);
    let found = window_level(&all(&records), &plain(), &words, &mut none, 30, &config);
    let message = found.unwrap_err().to_string();
    assert_eq!(message, "embedding 0: expected a length above 0, got 0");
    let mut fails = |_: &[String]| Err(Failure::new("no model".to_owned(), "fetch it"));
    let found = window_level(&all(&records), &plain(), &words, &mut fails, 30, &config);
    let failure = Failure::from(found.unwrap_err());
    assert_eq!(failure.to_string(), "error: no model\nnext step: fetch it");
}

#[test]
fn the_figure_shows_every_decile_of_four_measures() {
    let records = planted(false);
    let tokens = token_level(&all(&records), &plain(), &intervals().with_resamples(20)).unwrap();
    let found = windows(&records, 30).unwrap();
    let figure = |windows| novelty_figure("stories <&>", &tokens.deciles, windows).unwrap();
    let svg = figure(Some(&found.during.deciles));
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
    assert_eq!(svg.matches("<circle ").count(), 4 * 10);
    assert_eq!(svg.matches("<polygon ").count(), 4);
    assert!(svg.contains("stories &lt;&amp;&gt;"));
    for label in ["surprisal (nats)", "semantic distance (", "position (", "frequency rank ("] {
        assert!(svg.contains(label), "{label}");
    }
    assert!(svg.contains("2,280 tokens") && svg.contains("120 windows"), "{svg}");
    assert_eq!(svg, figure(Some(&found.during.deciles)), "the same bytes");
    let without = figure(None);
    assert_eq!(without.matches("<circle ").count(), 3 * 10);
    assert!(without.contains("semantic distance: no windows of 16 tokens"));
    // For a look at it: ESAMP_FIGURE=file cargo test --release --test evaluate_novelty figure
    if let Some(path) = std::env::var_os("ESAMP_FIGURE") {
        std::fs::write(Path::new(&path), svg).unwrap();
    }
}
