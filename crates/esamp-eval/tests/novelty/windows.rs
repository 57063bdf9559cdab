//! Correlations over windows, and the figure.

use super::*;

/// Detokenizes each token as its number and a space.
fn words(tokens: &[TokenId]) -> Result<String, TextError> {
    Ok(tokens.iter().map(|token| format!("{token} ")).collect())
}

/// Embeds a text as the direction, in degrees, that its last word gives.
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

/// A completion whose window `w` ends with the direction `degrees[w]`; windows count from the beginning.
fn turning(degrees: &[TokenId]) -> Vec<TokenId> {
    degrees.iter().flat_map(|&degree| [vec![500; WINDOW - 1], vec![degree]].concat()).collect()
}

/// Samples a token at every position of a completion except the first, with the given novelty.
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
    // Windows count from position 16 on. Completion 0 turns to 0°, 90°, 180°; completion 1 to 60°, 60°;
    // completion 2 ends at 120°.
    let said = [turning(&[0, 90, 180]), turning(&[60, 60]), turning(&[120])];
    let mut first = group(0, 0, &said);
    // Novelty encodes completion and window, to tell them apart in deciles.
    sample(&mut first, |completion, position| (10 * completion + position / WINDOW) as f64);
    // The same with one more window that is a token short, and a stop token without text.
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
    // The fourth problem has only one window: its completions 1 and 2 have ended before position 16.
    records[3].completions.truncate(1);
    records[3].completions.push(completion(&[60; 9]));
    records[3].completions.push(completion(&[60; 15]));
    records[3].completions[0].tokens.truncate(2 * WINDOW);
    let found = windows(&records, 30).unwrap();
    assert_eq!((found.groups, found.all_groups, found.windows, found.left_out), (4, 4, 10, 0));
    assert_eq!((found.during.n, found.before.n, found.during.problems), (10, 10, 4));
    // In the order of novelty: 90° from the nearest of 60° and 120° (16 positions), 180° from the nearest
    // of 60° (by position 32) and 120°, 60° from the nearest of 0° and 120°.
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
    // 16 positions from 16 on have the mean 23.5; the 15 tokens before, without position 0, have 8.
    let places = |level: &Level| {
        level.deciles.summaries(Measure::Position).unwrap().iter().map(|it| it.mean).collect()
    };
    let (during, before): (Vec<f64>, Vec<f64>) = (places(&found.during), places(&found.before));
    assert_eq!(during[..3], [23.5, 39.5, 23.5]);
    assert_eq!(before[..3], [8.0, 23.5, 8.0]);
}

/// Only complete windows count; checks which texts are embedded, each once.
#[test]
fn windows_begin_and_end_where_they_should() {
    let lengths = |lengths: &[usize]| -> Vec<Vec<TokenId>> {
        let tokens = |(at, &length): (usize, &usize)| vec![at as TokenId; length];
        lengths.iter().enumerate().map(tokens).collect()
    };
    let count = |lengths: &[Vec<TokenId>], finish: &str| {
        let mut record = group(0, 0, lengths);
        for completion in &mut record.completions {
            completion.finish = finish.to_owned();
        }
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
        // All windows of completion 0 have the same text, and so does what completion 1 has said by then.
        assert_eq!(seen.len(), if of == 0 { 0 } else { 2 }, "{length}: {seen:?}");
    }
    let (error, seen) = count(&lengths(&[32, 5]), "stop_token");
    assert_eq!((error, seen), (none.clone(), vec![]), "the stop token is not text");
    let (_, seen) = count(&lengths(&[33, 6]), "stop_token");
    assert_eq!(seen, [16, 5]);
    // A completion alone in its group, or with others that have said nothing.
    for said in [&[96][..], &[96, 0, 0], &[]] {
        let (error, seen) = count(&lengths(said), "max_new_tokens");
        assert_eq!((error, seen), (none.clone(), vec![]));
    }
}

/// Groups of two, with novelty planted from a naive computation of the distance, in the window or before
/// it.
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
        let (planted, other) =
            if ahead { (&found.before, &found.during) } else { (&found.during, &found.before) };
        // Equal angles have cosines that differ by rounding, so the correlation is not quite 1.
        assert!(rho(planted) > 0.999, "{ahead}: {}", rho(planted));
        assert!(rho(other).abs() < 0.5, "{ahead}: {}", rho(other));
        // Surprisal and entropy are constant and ranks and positions are not, so they explain none of it.
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
    for record in &mut again {
        record.seed = 1;
    }
    records.splice(0..0, again);
    let found = windows(&records, 12).unwrap();
    assert_eq!((found.groups, found.all_groups, found.windows), (12, 24, 120));
    assert_eq!(found.during.problems, 12, "one seed of each, not both of six");
    let all = windows(&records, MAX_GROUPS).unwrap();
    assert_eq!((all.groups, all.during.n, all.during.problems), (24, 240, 12));
    // Without the tokens at positions 32 to 47, window 2 has none during it, and window 3 none before it.
    for record in &mut records {
        record.token_sample.retain(|token| !(32..48).contains(&token.position));
    }
    let found = windows(&records, 12).unwrap();
    assert_eq!((found.windows, found.during.n, found.before.n), (120, 96, 96));
}

#[test]
fn missing_texts_and_embeddings_are_reported() {
    let records = planted(false);
    let config = intervals().with_resamples(20);
    let silent = |tokens: &[TokenId]| {
        if tokens.len() == WINDOW { Ok(" \n".to_owned()) } else { words(tokens) }
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
    // To look at the figure: ESAMP_FIGURE=file cargo test --release -p esamp-eval --test novelty figure
    if let Some(path) = std::env::var_os("ESAMP_FIGURE") {
        std::fs::write(Path::new(&path), svg).unwrap();
    }
}
