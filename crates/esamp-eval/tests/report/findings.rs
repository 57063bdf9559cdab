//! The figures and sentences of a report.

use super::*;

#[test]
fn gains_at_equal_perplexity_are_read_from_the_frontier() {
    let (_guard, path) = folder();
    let results = Results::gather(vec![run_of(&[task("texts", false)], 12)]).unwrap();
    let text = written(&results, &path);
    // All problems are the same, so all resamples are too, and intervals have no width. The line is at 2
    // where the surprisal is 2, and at 3 where it is 3; the entropy 0.5 lies before its beginning, and
    // between 2 and 3 it rises from 2 to 4. The best temperature has 4.
    for row in [
        "| orthogonal-1 | 4.00 | **+2.00 [+2.00, +2.00]** | **+2.00 [+2.00, +2.00]** | – | 0.00 [0.00, 0.00] |",
        "| matched-orthogonal-1 | 2.00 | 0.00 [0.00, 0.00] | **−1.00 [−1.00, −1.00]** | **−1.00 [−1.00, −1.00]** | \
         **−2.00 [−2.00, −2.00]** |",
        "| min-p-1 | 2.00 | – | – | – | – |",
        "| min-p-0.5 | 1.00 | **−1.00 [−1.00, −1.00]** | – | – | – |",
        // Two above the line, compared with one below it, and with one and a half above it.
        "| orthogonal-1 | matched-orthogonal-1 | **+3.00 [+3.00, +3.00]** |",
        "| orthogonal-1 | old | **+0.50 [+0.50, +0.50]** |",
        "| orthogonal-1 | what orthogonal-1 is | 1 | min-p 0.05 | 0.25 | method |",
        // Two tokens of eight, in every problem.
        "| orthogonal-1 | 25.0 % | 0.125 | 1.000 | 0.500 | – | – | – |",
    ] {
        assert!(text.lines().any(|line| line == row), "expected {row:?} in\n{text}");
    }
    let levels = "| arm | Vendi | cosine | adjusted distinct-2 | self-BLEU | perplexity | entropy | tokens | cut |";
    assert!(text.contains(levels), "{text}");
    let pairs = text.matches("than its control or a baseline does, in ").count();
    assert_eq!(pairs, 2, "Vendi, and words besides: {text}");
    // For self-BLEU lower is better: the hottest arm is the best one, with the same texts as the method.
    let (_, bleu) = text.split_once("| arm | self-BLEU | vs").unwrap();
    let row = bleu.lines().find(|line| line.starts_with("| orthogonal-1 |")).unwrap();
    assert!(row.ends_with("| – | 0.000 [0.000, 0.000] |"), "{row}");
    // A cosine of 1 in two pairs of six, and e².
    let level = text.lines().find(|line| line.starts_with("| min-p-1 | 2.00 | 0.333 |")).unwrap();
    assert!(level.ends_with("| 7.39 | 2.000 | 2.0 | 25 % |"), "{level}");
}

#[test]
fn intervals_are_paired_and_over_problems() {
    // By problem, the base has 1 to 6 and the method one more than twice that: the differences are 2 to 7.
    let (_guard, path) = folder();
    let mut run = run_of(&[task("texts", false)], 12);
    for record in &mut run.records {
        let size = (record.problem % 6 + 1) as f64;
        let entropy = match record.arm.as_str() {
            "orthogonal-1" => 2.0 * size + 1.0,
            _ => size,
        };
        // One seed adds what the other subtracts, and the mean counts.
        let entropy = entropy + [0.5, -0.5][record.seed as usize];
        for completion in &mut record.completions {
            completion.log_prob_sum = -2.0 * entropy;
        }
    }
    let results = Results::gather(vec![run]).unwrap();
    let task = report::Task::of(&results, &results.tasks[0], &mut embed).unwrap();
    let (method, base) = (3, 1);
    let opponents = Opponents { base, frontier: Vec::new() };
    let found =
        gain(&task.scores, method, Measure::Surprisal, At::Base, &opponents).unwrap().unwrap();
    let difference: Vec<f64> = (0..12).map(|problem| (problem % 6 + 2) as f64).collect();
    let expected = mean_interval(&difference, &bootstrap(12)).unwrap();
    assert_eq!(found.problems, 12);
    for (found, expected) in [
        (found.interval.estimate, 4.5),
        (found.interval.estimate, expected.estimate),
        (found.interval.low, expected.low),
        (found.interval.high, expected.high),
    ] {
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }
    drop(path);
}

#[test]
fn the_first_screen_says_what_was_found() {
    let (_guard, path) = folder();
    let tasks = [task("texts", false), task("answers", true)];
    let results = Results::gather(vec![run_of(&tasks, 12)]).unwrap();
    let text = written(&results, &path);
    let top: Vec<&str> = text.lines().take(16).collect();
    let top = top.join("\n");
    for part in [
        // The frontier has 1, 2 and no different answers at a validity of 0.25, 0.5 and 0. The method has three at 0.75,
        // beyond the ends of that line, and the best temperature has two.
        "**What does it find that plain sampling does not?** Different texts (Vendi) on texts, at equal perplexity: \
         orthogonal-1 **+2.00 [+2.00, +2.00]**. Different right answers among 4 on answers, where the best temperature, \
         min-p-1, has 1.00 of them at a validity of 0.500: at equal validity orthogonal-1 beyond the ends of the \
         frontier; against the best temperature, whatever the validity, orthogonal-1 **+2.00 [+2.00, +2.00]**.",
        "**Does learning matter?** Vendi on texts, how much farther above plain sampling: orthogonal-1 than \
         matched-orthogonal-1 **+3.00 [+3.00, +3.00]**. Pass@4 on answers, ",
        // Eight tokens each: 8 for one answer against 8 for three.
        "**What does a new right answer cost?** On answers, min-p-1 needs 8 tokens for each different right answer; \
         compared with it: orthogonal-1 **−66.7 [−66.7, −66.7]** % tokens (breaks even at an overhead of 200.0 %).",
        "held-out problems of texts (12 problems × 2 seeds) and answers (12 problems × 2 seeds).",
        "**Different ideas** (Vendi score of texts; min-p-1 has 2.00). Compared with plain sampling of equal \
         perplexity: orthogonal-1 \
         **+2.00 [+2.00, +2.00]**.",
        "each at its own perplexity: orthogonal-1 than matched-orthogonal-1 **+3.00 [+3.00, +3.00]**, \
         orthogonal-1 than old \
         **+0.50 [+0.50, +0.50]**.",
        "**pass@4** compared with min-p-1: answers (min-p-1 has 1.000): no difference found for orthogonal-1 \
         0.000 [0.000, 0.000].",
        "**pass@1** compared with min-p-1: answers (min-p-1 has 0.500): orthogonal-1 **+0.250 [+0.250, +0.250]**.",
        "**Worth it?** Vendi on texts, compared with plain sampling of equal perplexity: more from \
         orthogonal-1; pass@4 on answers, \
         compared with the best of the temperatures: no difference found for orthogonal-1.",
        "One model of 8 dimensions",
    ] {
        assert!(top.contains(part), "expected {part:?} in\n{top}");
    }
}

#[test]
fn the_summary_says_what_is_unknown() {
    let summary = |problems: usize, change: &dyn Fn(&mut Run)| {
        let (_guard, path) = folder();
        let mut run = run_of(&[task("texts", false)], problems);
        change(&mut run);
        written(&Results::gather(vec![run]).unwrap(), &path)
    };
    let few = summary(3, &|_| {});
    assert!(
        few.contains("orthogonal-1 +2.00 [+2.00, +2.00] (fewer than 10 problems conclude nothing)"),
        "{few}"
    );
    assert!(few.contains("too few problems to conclude anything about orthogonal-1"), "{few}");

    // Less probable than any temperature of the frontier.
    let beyond = summary(12, &|run| {
        for record in run.records.iter_mut().filter(|record| record.arm == "orthogonal-1") {
            for completion in &mut record.completions {
                completion.log_prob_sum = -100.0;
            }
        }
    });
    assert!(
        beyond.contains("of equal perplexity: orthogonal-1 beyond the ends of the frontier."),
        "{beyond}"
    );
    assert!(beyond.contains("nothing to compare with for orthogonal-1"), "{beyond}");

    let worse = summary(12, &|run| {
        for record in run.records.iter_mut().filter(|record| record.arm == "orthogonal-1") {
            for completion in &mut record.completions {
                completion.text = "a".into();
            }
        }
    });
    assert!(worse.contains("less from orthogonal-1"), "{worse}");

    let none = summary(12, &|run| {
        run.header.arms.retain(|arm| arm.role != Role::Method);
        run.header.split = Split::Dev;
    });
    assert!(none.contains("**Worth it?** No method was run."), "{none}");
    assert!(
        none.contains("development (settings may have been chosen on them) problems"),
        "{none}"
    );

    let unfinished = summary(12, &|run| run.records.truncate(run.records.len() - 1));
    assert!(unfinished.contains("unfinished, planned were 12 × 2."), "{unfinished}");
}

#[test]
fn completions_too_short_for_a_measure_leave_their_problem_out_of_it() {
    let (_guard, path) = folder();
    let mut run = run_of(&[task("texts", false)], 12);
    // One arm has said nothing on a problem, so that problem has no token pairs and no self-BLEU for any
    // arm.
    let record = run.records.iter_mut().find(|record| record.arm == "old").unwrap();
    for completion in &mut record.completions {
        (completion.tokens, completion.finish) = (vec![7], "stop_token".into());
    }
    let text = written(&Results::gather(vec![run]).unwrap(), &path);
    let note = "On 11 problems: some arm's completions of the others are too short for it.";
    assert_eq!(text.matches(note).count(), 2, "{text}");
}

#[test]
fn right_answers_have_their_tables_and_curves() {
    let (_guard, path) = folder();
    let results = Results::gather(vec![run_of(&[task("answers", true)], 3)]).unwrap();
    let text = written(&results, &path);
    for (name, _, _, _, _, _, right) in ARMS {
        let [one, two] = [1, 2].map(|k| pass_at_k(SAMPLES, right, k).unwrap());
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("| {name} |")) && line.ends_with(" % |"));
        let line = line.unwrap();
        assert!(line.contains(&format!("| {one:.3} | {two:.3} |")), "{line}");
        let place = ARMS.iter().position(|arm| arm.0 == name).unwrap();
        let expected = [1.0, 1.0, 0.0, 3.0, 1.0, 2.0][place];
        assert!(line.contains(&format!("| {expected:.2} |")), "{line}");
    }
    // min-p-2 is never right, the base always at least once: three problems for the base alone, p = 2/2³.
    assert!(text.contains("| min-p-2 | 0 | 3 | 0.250 |"), "{text}");
    assert!(text.contains("![answers-pass-at-k](report/answers-pass-at-k.svg)"), "{text}");
    for figure in ["answers-pass-at-k.svg", "answers-pareto.svg"] {
        let svg = fs::read_to_string(path.join("report").join(figure)).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{figure}");
        assert!(ARMS.iter().all(|arm| svg.contains(arm.0)), "every arm has its name in {figure}");
    }
}
