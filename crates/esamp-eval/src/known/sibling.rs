//! Sibling discovery: two children of the same parent.

use std::collections::HashSet;

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use super::{Item, World};
use crate::tasks::shuffle_with;

const PARENTS: usize = 5;
/// Children of one parent, of either kind.
const CHILDREN: usize = 500;
const TRAINING: usize = 50_000;

/// Five parents with 500 children `x` and 500 children `y` each. An answer is `x y p`: a child of either kind and their
/// parent, which comes last, so that a model that goes from left to right has to know it before it says it.
pub struct Sibling {
    /// The children of each kind, 500 after the other of each parent.
    children: [Vec<usize>; 2],
    /// The parent of each child, by kind.
    parents: [Vec<usize>; 2],
}

impl Sibling {
    /// The only instance.
    pub fn new() -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(0x7369_626c);
        let children = [(); 2].map(|()| {
            let mut children: Vec<usize> = (0..PARENTS * CHILDREN).collect();
            shuffle_with(&mut children, &mut rng);
            children
        });
        let parents = children.clone().map(|children| {
            let mut parents = vec![0; children.len()];
            for (place, child) in children.into_iter().enumerate() {
                parents[child] = place / CHILDREN;
            }
            parents
        });
        Self { children, parents }
    }
}

impl Default for Sibling {
    fn default() -> Self {
        Self::new()
    }
}

impl World for Sibling {
    fn name(&self) -> &'static str {
        "sibling"
    }

    fn what(&self) -> &'static str {
        "two children of one parent, among 5 parents with 500 children of either kind"
    }

    fn query(&self) -> &'static str {
        ""
    }

    fn longest(&self) -> usize {
        3
    }

    fn words(&self) -> Vec<String> {
        let numbered = |letter: char, count: usize| (0..count).map(move |n| format!("{letter}{n}"));
        let children = PARENTS * CHILDREN;
        numbered('p', PARENTS)
            .chain(numbered('x', children))
            .chain(numbered('y', children))
            .collect()
    }

    fn training(&self) -> Vec<Item> {
        let mut rng = ChaCha8Rng::seed_from_u64(0x7061_6972);
        let mut known = HashSet::new();
        let mut items = Vec::with_capacity(TRAINING);
        while items.len() < TRAINING {
            let parent = rng.random_range(0..PARENTS);
            let [x, y] = [0, 1]
                .map(|kind| self.children[kind][parent * CHILDREN + rng.random_range(0..CHILDREN)]);
            if known.insert((x, y)) {
                items.push(Item { query: "", answer: format!("x{x} y{y} p{parent}") });
            }
        }
        items
    }

    fn canonical(&self, answer: &[&str]) -> Option<String> {
        let &[x, y, parent] = answer else {
            return None;
        };
        let number = |word: &str, letter| word.strip_prefix(letter)?.parse::<usize>().ok();
        let [of_x, of_y] = [(0, x, 'x'), (1, y, 'y')]
            .map(|(kind, word, letter)| self.parents[kind].get(number(word, letter)?).copied());
        let parent = number(parent, 'p')?;
        (of_x == Some(parent) && of_y == Some(parent)).then(|| answer.join(" "))
    }

    fn answers(&self) -> usize {
        PARENTS * CHILDREN * CHILDREN
    }
}
