//! The task of naming members of well-known lists, which are short enough to count all solutions.

use super::{Problem, Task, Verdict};

/// A member of a known list whose name contains a given letter.
pub struct Names;

/// A list and its name in the question.
pub struct List {
    /// Completes "Name one …".
    pub what: &'static str,
    /// All members, in English.
    pub members: &'static [&'static str],
}

/// The lists: countries by continent (the two Congos count as one, because texts do not distinguish them),
/// the states of the United States, and chemical elements without lead, which is more often a verb.
pub const LISTS: [List; 6] = [
    List {
        what: "country in Africa",
        members: &[
            "Algeria",
            "Angola",
            "Benin",
            "Botswana",
            "Burkina Faso",
            "Burundi",
            "Cabo Verde",
            "Cameroon",
            "Central African Republic",
            "Chad",
            "Comoros",
            "Congo",
            "Djibouti",
            "Egypt",
            "Equatorial Guinea",
            "Eritrea",
            "Eswatini",
            "Ethiopia",
            "Gabon",
            "Gambia",
            "Ghana",
            "Guinea",
            "Guinea-Bissau",
            "Ivory Coast",
            "Kenya",
            "Lesotho",
            "Liberia",
            "Libya",
            "Madagascar",
            "Malawi",
            "Mali",
            "Mauritania",
            "Mauritius",
            "Morocco",
            "Mozambique",
            "Namibia",
            "Niger",
            "Nigeria",
            "Rwanda",
            "Senegal",
            "Seychelles",
            "Sierra Leone",
            "Somalia",
            "South Africa",
            "South Sudan",
            "Sudan",
            "Tanzania",
            "Togo",
            "Tunisia",
            "Uganda",
            "Zambia",
            "Zimbabwe",
        ],
    },
    List {
        what: "country in Asia",
        members: &[
            "Afghanistan",
            "Armenia",
            "Azerbaijan",
            "Bahrain",
            "Bangladesh",
            "Bhutan",
            "Brunei",
            "Cambodia",
            "China",
            "Georgia",
            "India",
            "Indonesia",
            "Iran",
            "Iraq",
            "Israel",
            "Japan",
            "Jordan",
            "Kazakhstan",
            "Kuwait",
            "Kyrgyzstan",
            "Laos",
            "Lebanon",
            "Malaysia",
            "Maldives",
            "Mongolia",
            "Myanmar",
            "Nepal",
            "North Korea",
            "Oman",
            "Pakistan",
            "Philippines",
            "Qatar",
            "Saudi Arabia",
            "Singapore",
            "South Korea",
            "Sri Lanka",
            "Syria",
            "Tajikistan",
            "Thailand",
            "Timor-Leste",
            "Turkey",
            "Turkmenistan",
            "United Arab Emirates",
            "Uzbekistan",
            "Vietnam",
            "Yemen",
        ],
    },
    List {
        what: "country in Europe",
        members: &[
            "Albania",
            "Andorra",
            "Austria",
            "Belarus",
            "Belgium",
            "Bosnia and Herzegovina",
            "Bulgaria",
            "Croatia",
            "Cyprus",
            "Czech Republic",
            "Denmark",
            "Estonia",
            "Finland",
            "France",
            "Germany",
            "Greece",
            "Hungary",
            "Iceland",
            "Ireland",
            "Italy",
            "Latvia",
            "Liechtenstein",
            "Lithuania",
            "Luxembourg",
            "Malta",
            "Moldova",
            "Monaco",
            "Montenegro",
            "Netherlands",
            "North Macedonia",
            "Norway",
            "Poland",
            "Portugal",
            "Romania",
            "Russia",
            "San Marino",
            "Serbia",
            "Slovakia",
            "Slovenia",
            "Spain",
            "Sweden",
            "Switzerland",
            "Ukraine",
            "United Kingdom",
        ],
    },
    List {
        what: "country in the Americas",
        members: &[
            "Antigua and Barbuda",
            "Argentina",
            "Bahamas",
            "Barbados",
            "Belize",
            "Bolivia",
            "Brazil",
            "Canada",
            "Chile",
            "Colombia",
            "Costa Rica",
            "Cuba",
            "Dominica",
            "Dominican Republic",
            "Ecuador",
            "El Salvador",
            "Grenada",
            "Guatemala",
            "Guyana",
            "Haiti",
            "Honduras",
            "Jamaica",
            "Mexico",
            "Nicaragua",
            "Panama",
            "Paraguay",
            "Peru",
            "Saint Kitts and Nevis",
            "Saint Lucia",
            "Saint Vincent and the Grenadines",
            "Suriname",
            "Trinidad and Tobago",
            "United States",
            "Uruguay",
            "Venezuela",
        ],
    },
    List {
        what: "state of the United States",
        members: &[
            "Alabama",
            "Alaska",
            "Arizona",
            "Arkansas",
            "California",
            "Colorado",
            "Connecticut",
            "Delaware",
            "Florida",
            "Georgia",
            "Hawaii",
            "Idaho",
            "Illinois",
            "Indiana",
            "Iowa",
            "Kansas",
            "Kentucky",
            "Louisiana",
            "Maine",
            "Maryland",
            "Massachusetts",
            "Michigan",
            "Minnesota",
            "Mississippi",
            "Missouri",
            "Montana",
            "Nebraska",
            "Nevada",
            "New Hampshire",
            "New Jersey",
            "New Mexico",
            "New York",
            "North Carolina",
            "North Dakota",
            "Ohio",
            "Oklahoma",
            "Oregon",
            "Pennsylvania",
            "Rhode Island",
            "South Carolina",
            "South Dakota",
            "Tennessee",
            "Texas",
            "Utah",
            "Vermont",
            "Virginia",
            "Washington",
            "West Virginia",
            "Wisconsin",
            "Wyoming",
        ],
    },
    List {
        what: "chemical element",
        members: &[
            "hydrogen",
            "helium",
            "lithium",
            "beryllium",
            "boron",
            "carbon",
            "nitrogen",
            "oxygen",
            "fluorine",
            "neon",
            "sodium",
            "magnesium",
            "aluminum",
            "silicon",
            "phosphorus",
            "sulfur",
            "chlorine",
            "argon",
            "potassium",
            "calcium",
            "scandium",
            "titanium",
            "vanadium",
            "chromium",
            "manganese",
            "iron",
            "cobalt",
            "nickel",
            "copper",
            "zinc",
            "gallium",
            "germanium",
            "arsenic",
            "selenium",
            "bromine",
            "krypton",
            "rubidium",
            "strontium",
            "yttrium",
            "zirconium",
            "niobium",
            "molybdenum",
            "technetium",
            "ruthenium",
            "rhodium",
            "palladium",
            "silver",
            "cadmium",
            "indium",
            "tin",
            "antimony",
            "tellurium",
            "iodine",
            "xenon",
            "cesium",
            "barium",
            "lanthanum",
            "cerium",
            "tungsten",
            "platinum",
            "gold",
            "mercury",
            "thallium",
        ],
    },
];

/// The fewest solutions of a problem.
const LEAST: usize = 8;

impl Task for Names {
    fn name(&self) -> &'static str {
        "names"
    }

    fn what(&self) -> &'static str {
        "one member of a known list whose name has a given letter; every such member is one solution"
    }

    fn tokens(&self) -> usize {
        40
    }

    fn many_modes(&self) -> bool {
        true
    }

    fn problems(&self) -> Vec<Problem> {
        let letters = LISTS.iter().flat_map(|list| ('a'..='z').map(move |letter| (list, letter)));
        let found = letters.map(|(list, letter)| (list, letter, list.solutions(letter)));
        let found = found.filter(|(list, _, solutions)| {
            // A letter that nearly all members have is no constraint.
            (LEAST..=list.members.len() * 2 / 3).contains(&solutions.len())
        });
        found.map(|(list, letter, solutions)| problem(list, letter, solutions.len())).collect()
    }
}

fn problem(list: &'static List, letter: char, solutions: usize) -> Problem {
    let prompt = format!(
        "Name one {} whose name contains the letter \"{letter}\", and say one sentence about it.",
        list.what
    );
    let check = move |text: &str| {
        let answer = list.first_in(text);
        let mode = answer.filter(|name| has(name, letter)).map(str::to_owned);
        Verdict { correct: Some(mode.is_some()), answer: answer.map(str::to_owned), mode }
    };
    Problem::new(prompt, check).with_solutions(solutions)
}

impl List {
    /// The members whose names contain a letter.
    pub fn solutions(&self, letter: char) -> Vec<&'static str> {
        self.members.iter().copied().filter(|name| has(name, letter)).collect()
    }

    /// The member that a text names first, ignoring case; the longest if several start at the same place.
    pub fn first_in(&self, text: &str) -> Option<&'static str> {
        let text = text.to_lowercase();
        let found = self.members.iter().filter_map(|name| {
            Some((whole_word(&text, &name.to_lowercase())?, std::cmp::Reverse(name.len()), *name))
        });
        found.min().map(|(_, _, name)| name)
    }
}

fn has(name: &str, letter: char) -> bool {
    name.to_lowercase().contains(letter)
}

/// The first position of a word or phrase in a text without a letter or digit next to it.
fn whole_word(text: &str, word: &str) -> Option<usize> {
    let joins = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(word).map(|(at, _)| at).find(|&at| {
        let (before, behind) = (&text[..at], &text[at + word.len()..]);
        !joins(before.chars().next_back()) && !joins(behind.chars().next())
    })
}
