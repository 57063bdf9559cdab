//! The public set reasoning-gym.

use super::*;

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
        ..Verdict::default()
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
            // The sisters or female friends of the person asked about: the given ones, and the person whose
            // they are.
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

/// The possible answers, derived from a story of marriages and children. Husbands are named first; the sex
/// of an unmarried child is known only from the name.
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
fn a_file_that_is_not_a_problem_set_is_refused() {
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
