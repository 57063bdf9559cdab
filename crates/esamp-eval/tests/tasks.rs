//! The tasks of `evaluate`: what its checkers accept, and that its splits have nothing in common.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{HashMap, HashSet};

use esamp_eval::{
    record::Split,
    tasks::{
        self, Problem, Task, Verdict,
        gcd::{divisor_in, gcd},
        letters::{count, count_in},
        names::LISTS,
        numbers::{last_number, numbers},
        products::product_in,
        reasoning_gym::{Entry, FILE, Generator, ProblemSet},
        sentences::Constraint,
    },
};

#[test]
fn numbers_of_a_text() {
    let table: [(&str, &[&str]); 16] = [
        ("", &[]),
        ("none", &[]),
        ("12", &["12"]),
        ("12.", &["12"]),
        ("1,024 and 1,234,567.", &["1024", "1234567"]),
        ("1, 2,3 and 4,56", &["1", "2", "3", "4", "56"]),
        ("1234,567", &["1234", "567"]),
        ("1,0240", &["1", "240"]),
        ("007", &["7"]),
        ("0 and 000", &["0", "0"]),
        ("3.50, 3.0 and 0.5", &["3.5", "3", "0.5"]),
        ("v1.2.3", &["1.2", "3"]),
        ("-4 and 7-3 and x-2 and −5", &["-4", "7", "3", "2", "-5"]),
        ("-0", &["0"]),
        ("12x13=156", &["12", "13", "156"]),
        ("**504**", &["504"]),
    ];
    for (text, expected) in table {
        assert_eq!(numbers(text), expected, "{text}");
    }
}

#[test]
fn the_last_number_that_could_be_the_answer() {
    for (text, expected) in [
        ("4 5 6 7", Some("6")),
        ("4", None),
        ("7", None),
        ("5.5", None),
        ("-5", None),
        ("99999999999999999999999 5", Some("5")),
    ] {
        assert_eq!(last_number(text, 5..=6).as_deref(), expected, "{text}");
    }
}

#[test]
fn products_by_hand() {
    for (text, expected) in [
        ("9 times 42 is 378.", Some("378")),
        ("9*42 = 378. There are 9 groups of 42.", Some("378")),
        ("9 x 40 = 360 and 9 x 2 = 18, so it is 378.", Some("378")),
        ("9 times 42 equals 360.", Some("360")),
        ("I don't know. 42!", None),
        ("", None),
    ] {
        assert_eq!(product_in(text, 9, 42).as_deref(), expected, "{text}");
    }
}

#[test]
fn divisors_by_hand() {
    for (a, b, divisor) in [(12, 18, 6), (42, 44, 2), (17, 5, 1), (7, 7, 7), (48, 36, 12)] {
        assert_eq!((gcd(a, b), gcd(b, a)), (divisor, divisor));
    }
    for (text, expected) in [
        ("The greatest common divisor of 12 and 18 is 6.", Some("6")),
        ("12 = 2 * 6 and 18 = 3 * 6. So 6!", Some("6")),
        ("It is 3, as 12 = 4 * 3 and 18 = 6 * 3, which leaves 2.", Some("3")),
        ("It is 36, so it is **4**.", Some("4")),
        ("The answer is 36.", None),
        ("It is 12", None),
    ] {
        assert_eq!(divisor_in(text, 12, 18).as_deref(), expected, "{text}");
    }
    let naive = |a: u64, b: u64| {
        (1..=a).rev().find(|&d| a.is_multiple_of(d) && b.is_multiple_of(d)).unwrap()
    };
    for problem in tasks::Gcd.problems() {
        let asked = numbers(&problem.prompt);
        let [a, b]: [u64; 2] = [asked[0].parse().unwrap(), asked[1].parse().unwrap()];
        assert_eq!(problem.expected, Some(naive(a, b).to_string()));
        assert!(naive(a, b) > 1 && naive(a, b) < a.min(b));
    }
}

#[test]
fn letters_by_hand() {
    for (word, letter, expected) in
        [("strawberry", 'r', 3), ("mississippi", 's', 4), ("tin", 'x', 0)]
    {
        assert_eq!(count(word, letter), expected);
    }
    for (text, expected) in [
        ("It occurs 3 times.", Some("3")),
        ("Three times: s-t-r-a-w-b-e-r-r-y", Some("3")),
        ("The letter occurs twice in a word of 10 letters.", Some("2")),
        ("Once.", Some("1")),
        ("2.", Some("2")),
        ("In 1024 words it is four", Some("4")),
        ("Often, zeroth", None),
        ("11 times", None),
        ("10", Some("10")),
    ] {
        assert_eq!(count_in(text).as_deref(), expected, "{text}");
    }
}

#[test]
fn sentences_by_hand() {
    let constraint = Constraint { words: ["lamp", "river"], limit: 8 };
    for (text, expected) in [
        ("The lamp lit the dark river.", Some("dark lit")),
        ("  \"The Lamp lit the dark RIVER!\" ", Some("dark lit")),
        ("A river, dark, lit a lamp?", Some("dark lit")),
        ("The lamp is in the river.", Some("")),
        ("A lamp shone over the cold and dark river.", None), // nine words
        ("A lamp shone over the cold dark river.", Some("cold dark shone")),
        ("Lamp, dark river.", None), // three
        ("Lamp near a river.", Some("")),
        ("The lamps lit the dark river.", None),
        ("The lamp lit the dark.", None),
        ("The lamp lit the dark river", None),
        ("The lamp lit it. The river too.", None),
        ("The lamp lit\nthe dark river.", None),
        ("Sentence: the lamp lit the river.", None),
        ("1. The lamp lit the river.", None),
        (".", None),
        ("", None),
    ] {
        assert_eq!(constraint.solution_in(text).as_deref(), expected, "{text}");
    }
}

#[test]
fn names_by_hand() {
    let africa = &LISTS[0];
    for (text, expected) in [
        ("Nigeria is a country.", Some("Nigeria")),
        ("Niger, not Nigeria.", Some("Niger")),
        ("In SOUTH SUDAN, south of Sudan", Some("South Sudan")),
        ("Guinea-Bissau has a coast.", Some("Guinea-Bissau")),
        ("Guineas and Maliki", None),
        ("France and Kenya", Some("Kenya")),
        ("", None),
    ] {
        assert_eq!(africa.first_in(text), expected, "{text}");
    }
    assert_eq!(LISTS[4].solutions('x'), ["New Mexico", "Texas"]);
    for list in &LISTS {
        let unique: HashSet<&str> = list.members.iter().copied().collect();
        assert_eq!(unique.len(), list.members.len(), "{}", list.what);
        for name in list.members {
            assert_eq!(list.first_in(&format!("It is {name}.")), Some(*name));
        }
    }
    let problem = tasks::Names
        .problems()
        .into_iter()
        .find(|problem| problem.prompt.contains("in Africa whose name contains the letter \"z\""));
    // Mozambique, Tanzania, Zambia and Zimbabwe are too few to be asked for.
    assert!(problem.is_none());
    let problem = tasks::Names
        .problems()
        .into_iter()
        .find(|problem| {
            problem.prompt.contains("United States whose name contains the letter \"k\"")
        })
        .unwrap();
    let letters = [
        "Alaska",
        "Arkansas",
        "Kansas",
        "Kentucky",
        "Nebraska",
        "New York",
        "North Dakota",
        "Oklahoma",
        "South Dakota",
    ];
    assert_eq!(problem.solutions, Some(letters.len()));
    let verdict = |correct, answer: Option<&str>| Verdict {
        correct: Some(correct),
        answer: answer.map(str::to_owned),
        mode: answer.filter(|_| correct).map(str::to_owned),
    };
    assert_eq!(problem.check("alaska is cold, unlike Texas"), verdict(true, Some("Alaska")));
    assert_eq!(problem.check("Texas, not Kansas"), verdict(false, Some("Texas")));
    assert_eq!(problem.check("Atlantis"), verdict(false, None));
}

#[test]
fn sums_and_relationships_by_hand() {
    let numbers_in = [
        ("The final answer is 14.", Some("14")),
        ("9 + 8 = 17, so it is 17. ", Some("17")),
        ("It is 17, as 9 + 8 is.", Some("8")), // asked to end with the answer
        ("The answer is: 1,024", Some("1024")),
        ("3 - 7 = -4", Some("-4")),
        ("The answer is \"11\".", Some("11")),
        ("017.0", Some("17")),
        ("2.5", Some("2.5")),
        ("Seventeen.", None),
        ("", None),
    ];
    for generator in [Generator::ChainSum, Generator::Lcm, Generator::Aiw] {
        for (text, expected) in numbers_in {
            assert_eq!(generator.answer_in(text).as_deref(), expected, "{text}");
        }
    }
    for (text, expected) in [
        ("Jacob is the son of Alexander and Rain, his mother.", Some("son")),
        ("MOTHER", Some("mother")),
        ("\"Wife\": they are married.", Some("wife")),
        ("She's the grandmother.", Some("grandmother")),
        ("The grandson's mother", Some("grandson")),
        ("A mother-in-law", Some("mother-in-law")),
        ("His Mother in law.", Some("mother-in-law")),
        ("One of two sons: a brother.", Some("brother")),
        ("A person, a parent and a spouse.", None),
        ("- -- son", Some("son")),
        ("", None),
    ] {
        assert_eq!(Generator::FamilyRelationships.answer_in(text).as_deref(), expected, "{text}");
    }
    let entry = |generator, answer: &str| Entry {
        generator,
        question: "What is it?".into(),
        answer: answer.into(),
    };
    let problem = entry(Generator::ChainSum, "17").problem();
    assert_eq!(problem.prompt, "What is it?\nExplain in one sentence and end it with the answer.");
    let verdict = |correct, answer: Option<&str>| Verdict {
        correct: Some(correct),
        answer: answer.map(str::to_owned),
        mode: None,
    };
    assert_eq!(problem.check("It is 17."), verdict(true, Some("17")));
    assert_eq!(problem.check("It is 7."), verdict(false, Some("7")));
    assert_eq!(problem.check("It is -17."), verdict(false, Some("-17")));
    assert_eq!(problem.check("No."), verdict(false, None));
    let problem = entry(Generator::FamilyRelationships, "son").problem();
    assert_eq!(problem.check("The son."), verdict(true, Some("son")));
    assert_eq!(problem.check("The grandson."), verdict(false, Some("grandson")));
}

/// The sum that a question asks for.
fn sum_in(question: &str) -> i64 {
    let (mut sum, mut sign) = (0, 1);
    for word in question.rsplit(": ").next().unwrap().split(' ') {
        match word {
            "+" | "=" => sign = 1,
            "-" => sign = -1,
            term => sum += sign * term.parse::<i64>().unwrap(),
        }
    }
    sum
}

#[test]
fn the_public_set_is_whole_and_its_answers_are_right() {
    let set = ProblemSet::read(FILE).unwrap();
    assert_eq!(
        [&set.package, &set.version, &set.license].map(String::as_str),
        ["reasoning-gym", "0.1.25", "Apache-2.0"]
    );
    assert!(set.notice.contains("https://github.com/open-thought/reasoning-gym"));
    assert!(FILE.len() < 200_000);
    let unique: HashSet<&str> = set.problems.iter().map(|entry| entry.question.as_str()).collect();
    assert_eq!(unique.len(), set.problems.len(), "no two alike");
    for generator in
        [Generator::ChainSum, Generator::Lcm, Generator::Aiw, Generator::FamilyRelationships]
    {
        let of = set.problems.iter().filter(|entry| entry.generator == generator);
        assert_eq!(of.count(), 40, "{generator:?}");
    }
    for Entry { generator, question, answer } in &set.problems {
        let asked: Vec<u64> = numbers(question).iter().map(|n| n.parse().unwrap()).collect();
        assert!(!asked.iter().any(|n| n.to_string() == *answer), "{question} is no repetition");
        let right = match generator {
            Generator::ChainSum => sum_in(question).to_string(),
            Generator::Lcm => {
                let multiple = |m: &u64| asked.iter().all(|&n| m.is_multiple_of(n));
                (1..).find(multiple).unwrap().to_string()
            }
            // The asked one's sisters or female friends: the given ones, and she of whom they are.
            Generator::Aiw => {
                let words: Vec<&str> = question.split(' ').collect();
                let given = words.iter().position(|&word| word.starts_with("sisters"));
                let given = given.or_else(|| words.iter().position(|&word| word == "female"));
                (words[given.unwrap() - 1].parse::<u64>().unwrap() + 1).to_string()
            }
            Generator::FamilyRelationships => {
                let possible = relationships_in(question);
                assert!(possible.contains(&answer.as_str()), "{question} {possible:?}");
                continue;
            }
        };
        assert_eq!(*answer, right, "{question}");
    }
}

/// What the answer can be, from a story of who is married to whom, and whose child everybody is. Husbands come first; the
/// sex of an unmarried child is known from the name only.
fn relationships_in(question: &str) -> &'static [&'static str] {
    let (story, asked) = question.split_once("\n\n").unwrap();
    let mut couples: Vec<[&str; 2]> = Vec::new();
    let mut parents: HashMap<&str, [&str; 2]> = HashMap::new();
    for sentence in story.split_terminator('.').map(str::trim) {
        if let Some((husband, wife)) = sentence.split_once(" is married to ") {
            couples.push([husband, wife]);
        } else {
            let child = sentence.strip_prefix("They have a child called ").unwrap();
            parents.insert(child, *couples.last().unwrap());
        }
    }
    let is_child_of = |child, name| parents.get(child).is_some_and(|both| both.contains(&name));
    let words: Vec<&str> = asked.trim_end_matches('?').split(' ').collect();
    let (one, other) = match words[..] {
        ["What", "is", one, "to", other]
        | ["How", "is", one, "related", "to", other]
        | ["What", "relation", "is", one, "to", other] => (one, other),
        _ => panic!("{asked}"),
    };
    let is_man = couples.iter().any(|&[husband, _]| husband == one);
    let is_woman = couples.iter().any(|&[_, wife]| wife == one);
    let by_sex = |words: &'static [&'static str; 2]| match (is_man, is_woman) {
        (true, _) => &words[..1],
        (_, true) => &words[1..],
        _ => &words[..],
    };
    if couples.iter().any(|couple| couple.contains(&one) && couple.contains(&other)) {
        by_sex(&["husband", "wife"])
    } else if is_child_of(other, one) {
        by_sex(&["father", "mother"])
    } else if is_child_of(one, other) {
        by_sex(&["son", "daughter"])
    } else {
        let between =
            parents.get(other).is_some_and(|both| both.iter().any(|p| is_child_of(p, one)));
        assert!(between, "{question}");
        by_sex(&["grandfather", "grandmother"])
    }
}

#[test]
fn a_file_that_is_no_set_is_refused() {
    let error = |text: &str| ProblemSet::read(text).unwrap_err().to_string();
    let other = FILE.replacen("\"generator\": \"chain_sum\"", "\"generator\": \"gcd\"", 1);
    let wording =
        "unknown variant `gcd`, expected one of `chain_sum`, `lcm`, `aiw`, `family_relationships`";
    assert!(error(&other).starts_with(wording), "{}", error(&other));
    assert!(error(&FILE[..FILE.len() / 2]).starts_with("EOF while parsing"));
    let nameless = FILE.replacen("\"license\"", "\"licence\"", 1);
    assert!(error(&nameless).starts_with("missing field `license`"), "{}", error(&nameless));
}

#[test]
fn both_halves_of_the_public_set_have_problems_of_every_generator() {
    let set = ProblemSet::read(FILE).unwrap();
    for split in [Split::Dev, Split::HeldOut] {
        let half = tasks::ReasoningGym.split(split);
        assert_eq!(half.len(), 80);
        for generator in
            [Generator::ChainSum, Generator::Lcm, Generator::Aiw, Generator::FamilyRelationships]
        {
            let asked = |prompt: &str| {
                set.problems
                    .iter()
                    .any(|e| e.generator == generator && prompt.starts_with(e.question.as_str()))
            };
            let of = half.iter().filter(|problem| asked(&problem.prompt)).count();
            // 20 on average, with a standard deviation of 2.8.
            assert!((12..=28).contains(&of), "{of} of {generator:?}");
        }
    }
}

/// A right answer in the plainest words, if the task has one.
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

/// Fixed in advance: a change here makes earlier results those of other problems, and belongs in the changelog.
#[test]
fn the_splits_stay_what_they_are() {
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
