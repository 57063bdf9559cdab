//! The task of continuing stories.

use super::{Problem, Task, Verdict};

/// The continuation of a story. There is no right or wrong; only the text is measured.
pub struct Stories;

const PLACES: [&str; 10] = [
    "The old ferry",
    "The library on the hill",
    "The last house of the valley",
    "The night train",
    "The greenhouse",
    "The clock tower",
    "The weather station",
    "The empty theatre",
    "The bakery at the corner",
    "The observatory",
];
const EVENTS: [&str; 12] = [
    "had been closed for eleven years when",
    "was not on any map, and yet",
    "smelled of rain and oranges because",
    "had only one visitor that winter, who",
    "began to hum at midnight, so",
    "belonged to nobody until",
    "was sold for a single coin after",
    "had a door that nobody had opened since",
    "was always one minute late, but today",
    "kept a secret that even the mayor",
    "received a letter addressed to",
    "lost its colours on the morning that",
];

impl Task for Stories {
    fn name(&self) -> &'static str {
        "stories"
    }

    fn what(&self) -> &'static str {
        "the continuation of a story; nothing is right or wrong, texts are compared"
    }

    fn tokens(&self) -> usize {
        96
    }

    fn verifiable(&self) -> bool {
        false
    }

    fn problems(&self) -> Vec<Problem> {
        let openings =
            PLACES.iter().flat_map(|place| EVENTS.map(|event| format!("{place} {event}")));
        let problem = |opening| {
            let prompt = format!(
                "Continue this short story in an original way. Write only the continuation.\n\n{opening}"
            );
            Problem::new(prompt, |_| Verdict::default())
        };
        openings.map(problem).collect()
    }
}

/// The same problems, continued for longer. Not among [`all`](super::all) tasks.
pub struct LongStories;

impl Task for LongStories {
    fn name(&self) -> &'static str {
        "stories-long"
    }

    fn what(&self) -> &'static str {
        "the stories, continued for up to 512 tokens"
    }

    fn tokens(&self) -> usize {
        512
    }

    fn verifiable(&self) -> bool {
        false
    }

    fn problems(&self) -> Vec<Problem> {
        Stories.problems()
    }
}
