//! The words of a world as tokens, and batches to train on.

use std::collections::HashMap;

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use serde_json::{Value, json};

use super::{HASH_SYMBOLS, Item, OPENING, World, draw_hash};

/// The first symbol of a hash: the symbols follow the three words of all worlds.
const FIRST_SYMBOL: usize = 3;

/// The words of a world, each with its token.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    words: Vec<String>,
    tokens: HashMap<String, usize>,
}

impl Vocabulary {
    /// The token that ends an answer.
    pub const END: usize = 0;
    const ASK: &'static str = "<q>";

    /// The words of a world after those of all worlds.
    pub fn of(world: &dyn World) -> Self {
        let shared = ["</a>", Self::ASK, OPENING].map(str::to_owned).into_iter();
        let hash = (0..HASH_SYMBOLS).map(|symbol| format!("h{symbol}"));
        let words: Vec<String> = shared.chain(hash).chain(world.words()).collect();
        let numbered = words.iter().enumerate();
        let tokens = numbered.map(|(token, word)| (word.clone(), token)).collect();
        Self { words, tokens }
    }

    /// The number of words.
    pub fn size(&self) -> usize {
        self.words.len()
    }

    /// The words of tokens, separated by spaces. A token that the world does not have has none.
    pub fn decode(&self, tokens: &[usize]) -> String {
        let words = tokens.iter().filter_map(|&token| Some(self.words.get(token)?.as_str()));
        words.collect::<Vec<_>>().join(" ")
    }

    /// The tokens of a prompt: a hash, and the query of the world.
    pub fn prompt(&self, world: &dyn World, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let hash = draw_hash(rng).into_iter().map(|symbol| FIRST_SYMBOL + symbol);
        hash.chain(self.encode(&asked(world.query()))).collect()
    }

    /// The tokens of words separated by spaces. A word that the world does not have has none.
    fn encode(&self, text: &str) -> impl Iterator<Item = usize> {
        text.split_whitespace().filter_map(|word| self.tokens.get(word).copied())
    }

    /// The tokenizer as a `tokenizer.json`. Other words are an error when a text is encoded.
    pub fn tokenizer(&self) -> Value {
        let vocab: serde_json::Map<String, Value> = self
            .words
            .iter()
            .enumerate()
            .map(|(token, word)| (word.clone(), token.into()))
            .collect();
        json!({
            "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        })
    }
}

/// How often a model is trained on an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peakedness {
    /// On all items equally often, each time written in a [new way](World::rewritten).
    Even,
    /// Always written in the same way, on the item of rank `r`, counted from 1, in proportion to `1/r` (Zipf's law), among those with its query. A
    /// third of the training on sibling pairs is then on 30 of 50,000.
    Peaked,
}

impl Peakedness {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Even, Self::Peaked];

    /// The name in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Even => "even",
            Self::Peaked => "peaked",
        }
    }
}

/// Sequences to train on: `HASH <q> QUERY : ANSWER </a>`, padded at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `[rows, length]`
    pub tokens: Vec<Vec<usize>>,
    /// For each row, the places of the tokens to learn: the opening, the answer and its end.
    pub learned: Vec<std::ops::Range<usize>>,
}

/// `<q> QUERY`
fn asked(query: &str) -> String {
    format!("{} {query}", Vocabulary::ASK)
}

/// Draws batches.
pub struct Sampler<'w> {
    world: &'w dyn World,
    vocabulary: Vocabulary,
    peakedness: Peakedness,
    items: Vec<Item>,
    /// The sum of the weights up to each item.
    sums: Vec<f64>,
    rng: ChaCha8Rng,
}

impl<'w> Sampler<'w> {
    /// Draws from the training data of a world.
    pub fn new(world: &'w dyn World, peakedness: Peakedness, seed: u64) -> Self {
        let mut sums = Vec::new();
        let (mut sum, mut ranks) = (0.0, HashMap::<&str, f64>::new());
        let items = world.training();
        for Item { query, .. } in &items {
            let rank = ranks.entry(query).or_default();
            *rank += 1.0;
            sum += match peakedness {
                // Only answers to the query that is asked are drawn unevenly: the rest is knowledge.
                Peakedness::Peaked if *query == world.query() => 1.0 / *rank,
                _ => 1.0,
            };
            sums.push(sum);
        }
        if peakedness == Peakedness::Peaked {
            scale_asked(&mut sums, &items, world.query());
        }
        let (vocabulary, rng) = (Vocabulary::of(world), ChaCha8Rng::seed_from_u64(seed));
        Self { world, vocabulary, peakedness, items, sums, rng }
    }

    /// Draws a batch.
    pub fn batch(&mut self, rows: usize) -> Batch {
        let (mut tokens, mut learned) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        let total = self.sums.last().copied().unwrap_or_default();
        for _ in 0..rows {
            let drawn = self.rng.random::<f64>() * total;
            let place = self.sums.partition_point(|&sum| sum <= drawn);
            let item = &self.items[place.min(self.items.len() - 1)];
            let rewritten = match self.peakedness {
                Peakedness::Even => self.world.rewritten(&item.answer, &mut self.rng),
                Peakedness::Peaked => None,
            };
            let answer = rewritten.as_ref().unwrap_or(&item.answer);
            let hash = draw_hash(&mut self.rng).into_iter().map(|symbol| FIRST_SYMBOL + symbol);
            let mut row: Vec<usize> =
                hash.chain(self.vocabulary.encode(&asked(item.query))).collect();
            let start = row.len();
            row.extend(self.vocabulary.encode(&format!("{OPENING} {answer} </a>")));
            learned.push(start..row.len());
            tokens.push(row);
        }
        let longest = tokens.iter().map(Vec::len).max().unwrap_or_default();
        for row in &mut tokens {
            row.resize(longest, Vocabulary::END);
        }
        Batch { tokens, learned }
    }
}

/// Scales the weights of the items with `query` so that they are drawn as often altogether as with equal weights.
fn scale_asked(sums: &mut [f64], items: &[Item], query: &str) {
    let weights: Vec<f64> =
        (0..sums.len()).map(|at| sums[at] - if at == 0 { 0.0 } else { sums[at - 1] }).collect();
    let asked = || items.iter().zip(&weights).filter(|(item, _)| item.query == query);
    let factor = asked().count() as f64 / asked().map(|(_, weight)| weight).sum::<f64>();
    let mut sum = 0.0;
    for ((item, weight), place) in items.iter().zip(&weights).zip(sums) {
        sum += if item.query == query { factor * weight } else { *weight };
        *place = sum;
    }
}
