//! The splits are disjoint, large enough and fixed.

use super::*;

/// The right answer in plain words, if the task has one.
fn plain_answer(problem: &Problem) -> Option<String> {
    problem.expected.as_ref().map(|answer| format!("It is {answer}."))
}

#[test]
fn the_splits_have_nothing_in_common_and_are_large_enough() {
    for task in tasks::all() {
        let [dev, held_out] = [Split::Dev, Split::HeldOut].map(|split| task.split(split));
        assert!(dev.len() >= 30 && held_out.len() >= 30, "{} has {}", task.name(), dev.len());
        assert!(dev.len().abs_diff(held_out.len()) <= 1);
        let all: HashSet<&str> = dev.iter().chain(&held_out).map(|p| p.prompt.as_str()).collect();
        assert_eq!(all.len(), dev.len() + held_out.len(), "{}: no two alike", task.name());
        let listed: HashSet<String> = task.problems().into_iter().map(|p| p.prompt).collect();
        assert!(all.iter().all(|&prompt| listed.contains(prompt)) && listed.len() == all.len());
        for problem in dev.iter().chain(&held_out) {
            let nothing = problem.check("");
            assert_eq!(nothing.correct, task.verifiable().then_some(false));
            assert_eq!(nothing.mode, None);
            if let Some(text) = plain_answer(problem) {
                assert_eq!(problem.check(&text).correct, Some(true), "{}: {text}", problem.prompt);
            }
        }
    }
}

/// Fixed in advance. If the splits change, earlier results were measured on other problems, so such a change belongs
/// in the changelog.
#[test]
fn the_splits_do_not_change() {
    let first = |split: Split| -> Vec<String> {
        tasks::all().iter().map(|task| task.split(split).remove(0).prompt).collect()
    };
    assert_eq!(
        first(Split::Dev),
        [
            "Write one sentence of at most 12 words that contains the words \"pillow\" and \"soldier\". Write only the \
             sentence.",
            "Name one state of the United States whose name contains the letter \"l\", and say one sentence about it.",
            "What is 3 times 11? Explain briefly.",
            "How many times does the letter \"e\" occur in the word \"helicopter\"? Explain briefly.",
            "What is the greatest common divisor of 42 and 44? Explain briefly.",
            "Susan has 5 brothers and she also has 3 sisters. How many sisters does Susan's brother have?\nWrite one short \
             sentence with the calculation, and then the answer.",
            "Continue this short story in an original way. Write only the continuation.\n\nThe weather station smelled of \
             rain and oranges because",
        ]
    );
    assert_eq!(
        first(Split::HeldOut),
        [
            "Write one sentence of at most 8 words that contains the words \"river\" and \"thief\". Write only the sentence.",
            "Name one country in the Americas whose name contains the letter \"m\", and say one sentence about it.",
            "What is 6 times 19? Explain briefly.",
            "How many times does the letter \"r\" occur in the word \"refrigerator\"? Explain briefly.",
            "What is the greatest common divisor of 14 and 32? Explain briefly.",
            "Find the Least Common Multiple (LCM) of these numbers: 11, 9\nExplain in one sentence and end it with the answer.",
            "Continue this short story in an original way. Write only the continuation.\n\nThe old ferry began to hum at \
             midnight, so",
        ]
    );
}
