//! How common tokens are in a set of records.

use std::collections::HashMap;

use esamp::TokenId;

use super::ProblemRecord;

/// Frequency ranks of tokens in a set of records: 0 is the most frequent. Equally frequent tokens share the
/// mean of their ranks.
#[derive(Clone, Debug)]
pub struct FrequencyRanks(HashMap<TokenId, f64>);

impl FrequencyRanks {
    /// Counts the tokens of all completions. Use the records of a single arm, so that an arm's preferences
    /// do not affect the ranks.
    pub fn count<'a>(records: impl IntoIterator<Item = &'a ProblemRecord>) -> Self {
        let mut counts = HashMap::<TokenId, u64>::new();
        for completion in records.into_iter().flat_map(|record| &record.completions) {
            for &token in &completion.tokens {
                *counts.entry(token).or_default() += 1;
            }
        }
        let mut order: Vec<(TokenId, u64)> = counts.into_iter().collect();
        order.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let mut ranks = HashMap::new();
        let mut before = 0;
        for equals in order.chunk_by(|a, b| a.1 == b.1) {
            let rank = before as f64 + (equals.len() - 1) as f64 / 2.0;
            ranks.extend(equals.iter().map(|&(token, _)| (token, rank)));
            before += equals.len();
        }
        Self(ranks)
    }

    /// The rank of a token; a token that does not occur ranks after all others.
    pub fn of(&self, token: TokenId) -> f64 {
        self.0.get(&token).copied().unwrap_or(self.0.len() as f64)
    }
}
