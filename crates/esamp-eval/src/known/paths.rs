//! Circle and line construction: edges, in any order, that form one cycle or one path.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use super::{Item, World};
use crate::tasks::shuffle_with;

const NODES: usize = 10;
/// Edges of an answer: of a cycle through 9 of the 10 nodes, or of a path through all of them.
const EDGES: usize = 9;
const TRAINING: usize = 10_000;

/// An answer is nine edges in random order, each in the direction in which the cycle or path runs.
pub struct Paths {
    is_circle: bool,
}

impl Paths {
    /// The edges of a cycle through 9 of 10 nodes.
    pub fn circle() -> Self {
        Self { is_circle: true }
    }

    /// The edges of a path through 10 nodes.
    pub fn line() -> Self {
        Self { is_circle: false }
    }

    fn form(&self, nodes: &[usize]) -> Option<String> {
        let pairs = nodes.chunks_exact(2);
        let edges: BTreeSet<(usize, usize)> =
            pairs.map(|pair| (pair[0].min(pair[1]), pair[0].max(pair[1]))).collect();
        let mut neighbours: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &(a, b) in &edges {
            neighbours.entry(a).or_default().push(b);
            neighbours.entry(b).or_default().push(a);
        }
        let wanted = if self.is_circle { EDGES } else { EDGES + 1 };
        let ends = neighbours.values().filter(|others| others.len() == 1).count();
        let fits = edges.len() == EDGES
            && edges.iter().all(|(a, b)| a != b)
            && neighbours.len() == wanted
            && neighbours.values().all(|others| others.len() <= 2)
            && ends == if self.is_circle { 0 } else { 2 };
        // With these degrees it is one cycle or path if it is connected.
        let mut reached: BTreeSet<usize> = neighbours.keys().next().copied().into_iter().collect();
        let mut next: Vec<usize> = reached.iter().copied().collect();
        while let Some(node) = next.pop() {
            for &other in &neighbours[&node] {
                if reached.insert(other) {
                    next.push(other);
                }
            }
        }
        let joined = |&(a, b): &(usize, usize)| format!("{a}-{b}");
        let is_one = fits && reached.len() == wanted;
        is_one.then(|| edges.iter().map(joined).collect::<Vec<_>>().join(" "))
    }
}

impl World for Paths {
    fn name(&self) -> &'static str {
        if self.is_circle { "circle" } else { "line" }
    }

    fn what(&self) -> &'static str {
        if self.is_circle {
            "nine edges in any order that form one cycle through 9 of 10 nodes"
        } else {
            "nine edges in any order that form one path through 10 nodes"
        }
    }

    fn query(&self) -> &'static str {
        ""
    }

    fn longest(&self) -> usize {
        2 * EDGES
    }

    fn words(&self) -> Vec<String> {
        (0..NODES).map(|node| format!("n{node}")).collect()
    }

    fn training(&self) -> Vec<Item> {
        let mut rng =
            ChaCha8Rng::seed_from_u64(if self.is_circle { 0x6369_7263 } else { 0x6c69_6e65 });
        let mut known = HashSet::new();
        let mut items = Vec::with_capacity(TRAINING);
        while items.len() < TRAINING {
            let mut nodes: Vec<usize> = (0..NODES).collect();
            shuffle_with(&mut nodes, &mut rng);
            if self.is_circle {
                // The ninth node is followed by the first.
                nodes[EDGES] = nodes[0];
            }
            let mut edges: Vec<[usize; 2]> =
                nodes.windows(2).map(|pair| [pair[0], pair[1]]).collect();
            shuffle_with(&mut edges, &mut rng);
            let edges = edges.concat();
            if self.form(&edges).is_some_and(|form| known.insert(form)) {
                let words: Vec<String> = edges.iter().map(|node| format!("n{node}")).collect();
                items.push(Item { query: "", answer: words.join(" ") });
            }
        }
        items
    }

    /// The edges in a new order, all of them turned or none.
    fn rewritten(&self, answer: &str, rng: &mut ChaCha8Rng) -> Option<String> {
        let words: Vec<&str> = answer.split(' ').collect();
        let is_turned = rng.random_range(0..2) == 1;
        let edge = |pair: &[&'_ str]| {
            if is_turned {
                format!("{} {}", pair[1], pair[0])
            } else {
                format!("{} {}", pair[0], pair[1])
            }
        };
        let mut edges: Vec<String> = words.chunks_exact(2).map(edge).collect();
        shuffle_with(&mut edges, rng);
        Some(edges.join(" "))
    }

    fn canonical(&self, answer: &[&str]) -> Option<String> {
        let number = |word: &&str| {
            let node = word.strip_prefix('n')?.parse::<usize>().ok()?;
            (node < NODES).then_some(node)
        };
        let nodes: Vec<usize> = answer.iter().map(number).collect::<Option<_>>()?;
        (nodes.len() == 2 * EDGES).then(|| self.form(&nodes)).flatten()
    }

    /// Cycles of 9 of 10 nodes: `10 · 8! / 2`. Paths of 10 nodes: `10! / 2`.
    fn answers(&self) -> usize {
        if self.is_circle {
            10 * (1..=8).product::<usize>() / 2
        } else {
            (1..=10).product::<usize>() / 2
        }
    }
}
