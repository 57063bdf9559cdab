//! What is right, and what models are trained on.

use std::collections::HashSet;

use esamp_eval::{
    known::{
        Paths, Peakedness, Sampler, Sibling, Triangle, Vocabulary, World, tasks, trained_on, worlds,
    },
    record::Split,
};

fn form(world: &dyn World, answer: &str) -> Option<String> {
    world.canonical(&answer.split(' ').collect::<Vec<_>>())
}

#[test]
fn all_that_a_model_is_trained_on_is_right() {
    for (world, count, asked) in worlds()
        .iter()
        .zip([50_000, 15_000, 10_000, 10_000])
        .map(|(w, n)| (w, n, if w.name() == "triangle" { 5_000 } else { n }))
    {
        let items = world.training();
        assert_eq!(items.len(), count, "{}", world.name());
        let answers = items.iter().filter(|item| item.query == world.query());
        let forms: Vec<String> =
            answers.map(|item| form(&**world, &item.answer).unwrap()).collect();
        assert_eq!(forms.len(), asked);
        let different: HashSet<String> = forms.into_iter().collect();
        // A triangle is written in four ways; everything else is there once.
        assert_eq!(different.len(), if world.name() == "triangle" { 1_250 } else { count });
        assert_eq!(different, trained_on(&**world));
        assert_eq!(items, world.training(), "the same every time");
        assert_eq!(
            items.iter().map(|item| item.answer.split(' ').count()).max(),
            Some(world.longest())
        );
        assert!(different.len() < world.answers(), "there is something to find");
        let known: HashSet<String> = world.words().into_iter().collect();
        assert!(
            items.iter().flat_map(|item| item.answer.split(' ')).all(|word| known.contains(word))
        );
    }
}

#[test]
fn siblings_have_one_parent() {
    let world = Sibling::new();
    assert_eq!(world.answers(), 1_250_000);
    let items = world.training();
    let words =
        |at: usize| -> Vec<String> { items[at].answer.split(' ').map(str::to_owned).collect() };
    let first = words(0);
    let other = (1..).map(words).find(|other| other[2] != first[2]).unwrap();
    let say = |words: [&String; 3]| form(&world, &words.map(String::as_str).join(" "));
    assert!(say([&first[0], &first[1], &first[2]]).is_some());
    for wrong in [
        [&first[0], &other[1], &first[2]],
        [&first[0], &first[1], &other[2]],
        [&first[1], &first[0], &first[2]],
        [&first[0], &first[0], &first[2]],
    ] {
        assert_eq!(say(wrong), None, "{wrong:?}");
    }
    for wrong in ["x1 y1", "x9999 y1 p0", "", "x1 y1 p0 p0"] {
        assert_eq!(form(&world, wrong), None);
    }
}

#[test]
fn triangles_are_three_edges_of_the_graph_in_any_order() {
    let world = Triangle::new();
    let items = world.training();
    let shown = items.iter().find(|item| item.query == "tri").unwrap();
    let words: Vec<&str> = shown.answer.split(' ').collect();
    let [a, b, _, c, ..] = words[..] else { panic!("{words:?}") };
    let canonical = world.canonical(&words).unwrap();
    for same in [[b, a, c, a, b, c], [c, b, a, b, a, c]] {
        assert_eq!(world.canonical(&same), Some(canonical.clone()));
    }
    for wrong in
        [[a, b, a, b, b, c], [a, a, b, b, c, c], [a, b, b, c, c, c], [a, b, b, c, c, "n1000"]]
    {
        assert_eq!(world.canonical(&wrong), None, "{wrong:?}");
    }
    // Every edge is shown in some item: without that, a triangle could not be known.
    let edges: HashSet<[&str; 2]> = items
        .iter()
        .filter(|item| item.query == "edge")
        .map(|item| {
            let mut ends: Vec<&str> = item.answer.split(' ').collect();
            ends.sort_unstable();
            [ends[0], ends[1]]
        })
        .collect();
    for pair in words.chunks(2) {
        let mut pair = [pair[0], pair[1]];
        pair.sort_unstable();
        assert!(edges.contains(&pair));
    }
    // 1,998 are planted; others come about by chance.
    assert!((1_998..4_000).contains(&world.answers()), "{}", world.answers());
}

#[test]
fn circles_and_lines_are_one_piece() {
    let (circle, line) = (Paths::circle(), Paths::line());
    assert_eq!((circle.answers(), line.answers()), (201_600, 1_814_400));
    let edges = |pairs: &[(usize, usize)]| -> String {
        let pairs: Vec<String> = pairs.iter().map(|(a, b)| format!("n{a} n{b}")).collect();
        pairs.join(" ")
    };
    let ring: Vec<(usize, usize)> = (0..9).map(|at| (at, (at + 1) % 9)).collect();
    let chain: Vec<(usize, usize)> = (0..9).map(|at| (at, at + 1)).collect();
    let form_of = |world: &Paths, pairs: &[(usize, usize)]| form(world, &edges(pairs));
    assert_eq!(form_of(&circle, &ring).unwrap(), "0-1 0-8 1-2 2-3 3-4 4-5 5-6 6-7 7-8");
    assert!(form_of(&line, &chain).is_some());
    assert_eq!((form_of(&circle, &chain), form_of(&line, &ring)), (None, None));
    for world in [&circle, &line] {
        let right = if world.name() == "circle" { &ring } else { &chain };
        let mut turned: Vec<_> = right.iter().rev().map(|&(a, b)| (b, a)).collect();
        assert_eq!(form_of(world, &turned), form_of(world, right), "order and direction are free");
        turned[3] = turned[2];
        assert_eq!(form_of(world, &turned), None, "an edge twice");
        assert_eq!(form_of(world, &right[..8]), None, "an edge short");
        let mut own = right.clone();
        own[0] = (4, 4);
        assert_eq!(form_of(world, &own), None, "an edge to itself");
    }
    // Two pieces with the right degrees: cycles of 4 and 5 nodes; a cycle of 5 and a path of 5.
    let two = [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 8), (8, 4)];
    assert_eq!(form_of(&circle, &two), None);
    let both = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (5, 6), (6, 7), (7, 8), (8, 9)];
    assert_eq!(form_of(&line, &both), None);
}

#[test]
fn problems_differ_in_the_hash_only() {
    for task in tasks() {
        let [dev, held_out] = [Split::Dev, Split::HeldOut].map(|split| task.split(split));
        assert_eq!((dev.len(), held_out.len()), (40, 40));
        let prompts: HashSet<&str> =
            dev.iter().chain(&held_out).map(|p| p.prompt.as_str()).collect();
        assert_eq!(prompts.len(), 80, "no two alike");
        let query = |prompt: &str| prompt.split(' ').skip(4).collect::<Vec<_>>().join(" ");
        let queries: HashSet<String> = prompts.into_iter().map(query).collect();
        assert_eq!(queries.len(), 1, "{queries:?}");
        assert!(dev[0].solutions.is_some());
    }
    let world = Paths::circle();
    let problem = tasks().remove(2).split(Split::Dev).remove(0);
    let item = world.training().remove(0);
    let verdict = problem.check(&format!(": {}", item.answer));
    assert_eq!((verdict.correct, verdict.trained), (Some(true), true));
    assert_eq!(problem.check(&item.answer).correct, Some(false), "without the opening");
    assert_eq!(problem.check("").correct, Some(false));
    let ring: Vec<String> = (0..9).map(|at| format!("n{at} n{}", (at + 1) % 9)).collect();
    let verdict = problem.check(&format!(": {}", ring.join(" ")));
    assert_eq!((verdict.correct, verdict.trained), (Some(true), false));
}

#[test]
fn a_peaked_model_sees_few_items_often() {
    let world = Paths::line();
    let vocabulary = Vocabulary::of(&world);
    let shares = |peakedness: Peakedness| -> (f64, f64) {
        let mut sampler = Sampler::new(&world, peakedness, 1);
        let mut count = std::collections::HashMap::<String, usize>::new();
        let mut written = HashSet::new();
        for row in sampler.batch(20_000).tokens {
            // HASH <q> : ANSWER </a>
            let answer = vocabulary.decode(&row[6..row.len() - 1]);
            *count.entry(form(&world, &answer).unwrap()).or_default() += 1;
            written.insert(answer);
        }
        let ways = written.len() as f64 / count.len() as f64;
        // An even model sees an answer in a new order each time.
        assert_eq!(ways > 1.5, peakedness == Peakedness::Even, "{ways}");
        let most = *count.values().max().unwrap() as f64 / 20_000.0;
        (most, count.len() as f64 / 20_000.0)
    };
    // Zipf over 10,000 items: the first has 1 / 9.79 of all draws.
    let (most, _) = shares(Peakedness::Peaked);
    assert!((most - 1.0 / 9.787).abs() < 0.01, "{most}");
    let (most, different) = shares(Peakedness::Even);
    assert!(most < 0.001, "{most}");
    // 20,000 draws of 10,000 items hit 1 − e⁻² of them.
    assert!((different * 2.0 - 0.8647).abs() < 0.01, "{different}");
}

/// In the world with two kinds of items, only the asked ones are peaked, and both kinds are as frequent as before.
#[test]
fn only_answers_are_peaked() {
    let world = Triangle::new();
    let vocabulary = Vocabulary::of(&world);
    let words = vocabulary.tokenizer()["model"]["vocab"].clone();
    let tri = words["tri"].as_u64().unwrap() as usize;
    for peakedness in Peakedness::ALL {
        let batch = Sampler::new(&world, peakedness, 5).batch(9_000);
        let triangles = batch.tokens.iter().filter(|row| row[5] == tri).count();
        assert!((triangles as f64 / 9_000.0 - 1.0 / 3.0).abs() < 0.02, "{triangles}");
        for (row, learned) in batch.tokens.iter().zip(&batch.learned) {
            assert_eq!(row[learned.end - 1], Vocabulary::END);
            assert_eq!(row[learned.start], 2, "the opening");
        }
    }
}
