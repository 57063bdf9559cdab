//! Triangle discovery: three edges of a graph that meet.

use std::collections::{BTreeSet, HashSet};

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use super::{Item, World};
use crate::tasks::shuffle_with;

const NODES: usize = 999;
/// Triangles planted at each node.
const PLANTED: usize = 6;
/// Edges that each node gets in addition to those of its triangles.
const MORE: usize = 3;
/// Planted triangles that are in the training data.
const SHOWN: usize = 1_250;
/// Ways in which each of them is written there.
const ORDERS: usize = 4;
/// Items of the training data.
const TRAINING: usize = 15_000;

/// A graph of 999 nodes with six planted triangles at each node. An item of training is an edge, `edge : a b`, or a
/// triangle, `tri : a b b c c a`; a third are triangles.
pub struct Triangle {
    /// The planted triangles, in random order.
    planted: Vec<[usize; 3]>,
    /// The edges, the smaller node first.
    edges: BTreeSet<(usize, usize)>,
}

impl Triangle {
    /// The only instance.
    pub fn new() -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(0x7472_6961);
        let mut planted = Vec::with_capacity(PLANTED * NODES / 3);
        let mut nodes: Vec<usize> = (0..NODES).collect();
        for _ in 0..PLANTED {
            shuffle_with(&mut nodes, &mut rng);
            planted.extend(nodes.chunks_exact(3).map(|three| [three[0], three[1], three[2]]));
        }
        shuffle_with(&mut planted, &mut rng);
        let mut edges: BTreeSet<_> = planted.iter().flat_map(|&triangle| sides(triangle)).collect();
        for node in 0..NODES {
            for _ in 0..MORE {
                // One of the other nodes.
                let other = (node + rng.random_range(1..NODES)) % NODES;
                edges.insert(edge(node, other));
            }
        }
        Self { planted, edges }
    }
}

impl Default for Triangle {
    fn default() -> Self {
        Self::new()
    }
}

/// An edge, the smaller node first.
fn edge(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

fn sides([a, b, c]: [usize; 3]) -> [(usize, usize); 3] {
    [edge(a, b), edge(b, c), edge(c, a)]
}

impl World for Triangle {
    fn name(&self) -> &'static str {
        "triangle"
    }

    fn what(&self) -> &'static str {
        "three edges of a graph of 999 nodes that form a triangle"
    }

    fn query(&self) -> &'static str {
        "tri"
    }

    fn longest(&self) -> usize {
        6
    }

    fn words(&self) -> Vec<String> {
        let nodes = (0..NODES).map(|node| format!("n{node}"));
        ["tri", "edge"].map(str::to_owned).into_iter().chain(nodes).collect()
    }

    fn training(&self) -> Vec<Item> {
        let mut rng = ChaCha8Rng::seed_from_u64(0x6974_656d);
        let mut triangles = Vec::with_capacity(SHOWN * ORDERS);
        for &shown in &self.planted[..SHOWN] {
            let mut orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
            shuffle_with(&mut orders, &mut rng);
            triangles.extend(orders[..ORDERS].iter().map(|order| {
                let [a, b, c] = order.map(|at| shown[at]);
                Item { query: "tri", answer: format!("n{a} n{b} n{b} n{c} n{c} n{a}") }
            }));
        }
        // Every edge once and some in the other direction too, so that the graph can be learned.
        let directed = |&(a, b): &(usize, usize), turned: bool| {
            let (a, b) = if turned { (b, a) } else { (a, b) };
            Item { query: "edge", answer: format!("n{a} n{b}") }
        };
        let mut edges: Vec<(usize, usize)> = self.edges.iter().copied().collect();
        shuffle_with(&mut edges, &mut rng);
        let turned: Vec<bool> = edges.iter().map(|_| rng.random_range(0..2) == 1).collect();
        let once = edges.iter().zip(&turned).map(|(edge, &turned)| directed(edge, turned));
        let again = edges.iter().zip(&turned).map(|(edge, &turned)| directed(edge, !turned));
        let edges: Vec<Item> = once.chain(again).take(TRAINING - triangles.len()).collect();
        // Two edges after each triangle: the rank of an item does not say what it is.
        let mut edges = edges.into_iter();
        let mixed = triangles.into_iter().flat_map(|item| {
            let two: Vec<Item> = edges.by_ref().take(2).collect();
            std::iter::once(item).chain(two)
        });
        mixed.collect()
    }

    fn canonical(&self, answer: &[&str]) -> Option<String> {
        let number = |word: &&str| word.strip_prefix('n')?.parse::<usize>().ok();
        let nodes: Vec<usize> = answer.iter().map(number).collect::<Option<_>>()?;
        let &[a, b, c, d, e, f] = &nodes[..] else {
            return None;
        };
        let said: BTreeSet<_> = [edge(a, b), edge(c, d), edge(e, f)].into();
        let corners: BTreeSet<usize> = nodes.iter().copied().collect();
        let exist = said.len() == 3 && said.iter().all(|edge| self.edges.contains(edge));
        let [a, b, c] = corners.into_iter().collect::<Vec<_>>().try_into().ok()?;
        // Three different edges between three nodes are a triangle.
        exist.then(|| format!("n{a} n{b} n{c}"))
    }

    fn answers(&self) -> usize {
        let mut after = vec![HashSet::new(); NODES];
        for &(a, b) in &self.edges {
            after[a].insert(b);
        }
        // Each triangle is counted once, at the edge of its two smaller nodes.
        let common = |&(a, b): &(usize, usize)| after[a].intersection(&after[b]).count();
        self.edges.iter().map(common).sum()
    }
}
