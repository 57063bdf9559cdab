//! What the checkers of the tasks accept.

use super::*;

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
    // Mozambique, Tanzania, Zambia and Zimbabwe are fewer than the minimum number of solutions.
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
        trained: false,
    };
    assert_eq!(problem.check("alaska is cold, unlike Texas"), verdict(true, Some("Alaska")));
    assert_eq!(problem.check("Texas, not Kansas"), verdict(false, Some("Texas")));
    assert_eq!(problem.check("Atlantis"), verdict(false, None));
}
