//! Measures per problem: diversity, probability and correctness.

use std::collections::{BTreeMap, BTreeSet};

use esamp::TokenId;
use esamp_programs::failure::Failure;

use super::gather::TaskResults;
use crate::{
    metrics::{
        MetricError, Smoothing, expectation_adjusted_distinct, maj_at_k, mean_pairwise_cosine,
        pass_at_k, self_bleu, vendi_from_embeddings,
    },
    record::{CompletionRecord, ProblemRecord, TaskRecord},
};

pub use super::novelty::Embed;

/// A measure of the completions of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Vendi score of order 1 of the embeddings: the effective number of different completions.
    Vendi,
    /// Mean cosine of the embeddings of two completions.
    Cosine,
    /// Number of different token pairs relative to the number expected if as many were drawn from all pairs
    /// that any arm has written on the task: distinct-2 adjusted for texts of different lengths.
    Distinct,
    /// Self-BLEU up to order 4.
    SelfBleu,
    /// Number of different right solutions among all completions.
    Solutions,
    /// pass@k.
    Pass(usize),
    /// maj@k.
    Majority(usize),
    /// Mean surprisal per token under the model at temperature 1: the logarithm of perplexity.
    Surprisal,
    /// Mean entropy of the sampling distribution.
    Entropy,
    /// Tokens per completion.
    Tokens,
    /// Share of completions that end at the token limit.
    Cut,
}

impl Measure {
    /// The name in tables.
    pub fn name(self) -> String {
        match self {
            Self::Vendi => "Vendi".to_owned(),
            Self::Cosine => "cosine".to_owned(),
            Self::Distinct => "adjusted distinct-2".to_owned(),
            Self::SelfBleu => "self-BLEU".to_owned(),
            Self::Solutions => "solutions".to_owned(),
            Self::Pass(k) => format!("pass@{k}"),
            Self::Majority(k) => format!("maj@{k}"),
            Self::Surprisal => "surprisal".to_owned(),
            Self::Entropy => "entropy".to_owned(),
            Self::Tokens => "tokens".to_owned(),
            Self::Cut => "cut".to_owned(),
        }
    }

    /// Digits after the decimal point.
    pub fn digits(self) -> usize {
        match self {
            Self::Vendi | Self::Solutions => 2,
            Self::Tokens => 1,
            _ => 3,
        }
    }

    /// Whether lower is better.
    pub fn less_is_better(self) -> bool {
        matches!(self, Self::Cosine | Self::SelfBleu)
    }
}

/// A measure for every arm and problem: the mean over seeds.
#[derive(Clone, Debug)]
pub struct Scores {
    /// `[arm][problem]`, in the order of [`problems`](Self::problems).
    pub of_arm: Vec<Vec<f64>>,
    /// The problems for which every arm has the measure.
    pub problems: Vec<usize>,
}

/// Per problem: the sum over its seeds and the number of seeds.
type Sums = BTreeMap<usize, (f64, usize)>;

/// All measures of a task.
#[derive(Debug)]
pub struct TaskScores {
    pub measures: BTreeMap<Measure, Scores>,
    /// `[arm][group]`: whether any completion is right.
    pub solved: Vec<Vec<bool>>,
}

impl TaskScores {
    /// Computes all measures.
    ///
    /// # Errors
    ///
    /// Errors of `embed`, and measures that are undefined for a reason other than completions that are too
    /// short.
    pub fn of(results: &TaskResults, arms: usize, embed: &mut Embed<'_>) -> Result<Self, Failure> {
        let mut sums: BTreeMap<Measure, Vec<Sums>> = BTreeMap::new();
        let mut undefined: BTreeSet<(Measure, usize)> = BTreeSet::new();
        let mut solved = vec![Vec::new(); arms];
        let pairs = pairs(results, arms);
        for &group in &results.groups {
            for (arm, solved) in solved.iter_mut().enumerate() {
                let record = results.record(arm, group);
                let texts: Vec<String> =
                    record.completions.iter().map(|completion| completion.text.clone()).collect();
                let embeddings = embed(&texts)?;
                for (measure, value) in of_record(record, &results.task, &embeddings, pairs)? {
                    let Some(value) = value else {
                        undefined.insert((measure, group.0));
                        continue;
                    };
                    let sums = sums.entry(measure).or_insert_with(|| vec![BTreeMap::new(); arms]);
                    let sum = sums[arm].entry(group.0).or_default();
                    *sum = (sum.0 + value, sum.1 + 1);
                }
                solved.push(record.completions.iter().any(|one| one.correct == Some(true)));
            }
        }
        let measures = sums.into_iter().map(|(measure, sums)| {
            let mut problems = results.problems.clone();
            problems.retain(|&problem| !undefined.contains(&(measure, problem)));
            let mean = |&(sum, count): &(f64, usize)| sum / count as f64;
            let of_arm = sums
                .iter()
                .map(|sums| problems.iter().filter_map(|problem| sums.get(problem)).map(mean))
                .map(Iterator::collect)
                .collect();
            (measure, Scores { of_arm, problems })
        });
        let measures = measures.filter(|(_, scores)| scores.problems.len() >= 2).collect();
        Ok(Self { measures, solved })
    }

    /// The main measures of the task, if it has them: one of diversity, and one of correctness.
    pub fn principal(&self) -> Vec<Measure> {
        let passes: Vec<usize> = self.passes();
        let mut principal = Vec::new();
        if passes.is_empty() {
            principal.extend([Measure::Vendi, Measure::Distinct, Measure::SelfBleu]);
        } else {
            principal.extend(passes.first().map(|&k| Measure::Pass(k)));
            principal.extend(passes.last().filter(|&&k| k > 1).map(|&k| Measure::Pass(k)));
            principal.push(Measure::Solutions);
            principal.push(Measure::Vendi);
        }
        principal.retain(|measure| self.measures.contains_key(measure));
        principal
    }

    /// The measure that methods aim at: different texts, or a right answer among all completions.
    pub fn most_telling(&self) -> Option<Measure> {
        let most = self.passes().last().map_or(Measure::Vendi, |&k| Measure::Pass(k));
        self.measures.contains_key(&most).then_some(most)
    }

    /// The values of k for pass@k, ascending.
    pub fn passes(&self) -> Vec<usize> {
        let of = |measure: &Measure| match measure {
            Measure::Pass(k) => Some(*k),
            _ => None,
        };
        self.measures.keys().filter_map(of).collect()
    }
}

/// The measures of a record; `None` where its completions are too short for a measure.
fn of_record(
    record: &ProblemRecord,
    task: &TaskRecord,
    embeddings: &[Vec<f64>],
    pairs: u64,
) -> Result<Vec<(Measure, Option<f64>)>, Failure> {
    let completions = &record.completions;
    let samples = completions.len();
    let tokens: Vec<&[TokenId]> = completions.iter().map(CompletionRecord::said).collect();
    let count: usize = completions.iter().map(|one| one.tokens.len()).sum();
    let log_prob: f64 = completions.iter().map(|one| one.log_prob_sum).sum();
    let entropy: f64 =
        completions.iter().map(|one| one.mean_entropy * one.tokens.len() as f64).sum();
    let mut measures = vec![
        (Measure::Surprisal, Some(-log_prob / count as f64)),
        (Measure::Entropy, Some(entropy / count as f64)),
        (Measure::Tokens, Some(count as f64 / samples as f64)),
        (Measure::Cut, {
            let cut = completions.iter().filter(|one| one.finish == "max_new_tokens").count();
            Some(cut as f64 / samples as f64)
        }),
    ];
    if samples > 1 {
        measures.push((Measure::Vendi, defined(vendi_from_embeddings(embeddings, 1.0))?));
        measures.push((Measure::Cosine, defined(mean_pairwise_cosine(embeddings))?));
        let distinct = expectation_adjusted_distinct(&tokens, 2, pairs);
        measures.push((Measure::Distinct, defined(distinct)?));
        measures.push((Measure::SelfBleu, defined(self_bleu(&tokens, 4, Smoothing::Epsilon))?));
    }
    if task.verifiable {
        let correct = completions.iter().filter(|one| one.correct == Some(true)).count();
        for k in std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|&k| k <= samples) {
            measures.push((Measure::Pass(k), defined(pass_at_k(samples, correct, k))?));
        }
        if let Some(expected) = &record.expected {
            let answers: Vec<Option<&String>> =
                completions.iter().map(|one| one.answer.as_ref()).collect();
            let majority = maj_at_k(&answers, &expected, samples);
            measures.push((Measure::Majority(samples), defined(majority)?));
        }
        if task.many_modes {
            let modes: BTreeSet<&String> =
                completions.iter().filter_map(|one| one.mode.as_ref()).collect();
            measures.push((Measure::Solutions, Some(modes.len() as f64)));
        }
    }
    Ok(measures)
}

/// `None` if the texts are too short.
fn defined(measure: Result<f64, MetricError>) -> Result<Option<f64>, Failure> {
    match measure {
        Ok(value) => Ok(Some(value)),
        Err(MetricError::TooFew { .. }) => Ok(None),
        Err(error) => Err(Failure::runtime(error, "report this with the records")),
    }
}

/// Number of different token pairs that all arms together have written.
fn pairs(results: &TaskResults, arms: usize) -> u64 {
    let records = (0..arms).flat_map(|arm| results.of_arm(arm));
    let said = records.flat_map(|record| record.completions.iter().map(CompletionRecord::said));
    let pairs: std::collections::HashSet<(TokenId, TokenId)> =
        said.flat_map(|tokens| tokens.windows(2).map(|pair| (pair[0], pair[1]))).collect();
    pairs.len() as u64
}
