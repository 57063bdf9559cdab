//! Runs one batch: prompts in, records out.

use esamp::{CausalLm, Completion, Counters, TokenId};
use esamp_programs::failure::Failure;

use crate::{
    decode::ArmDecoder,
    meter::RowMeter,
    plan::Unit,
    record::{
        ArmRecord, CompletionRecord, Header, ProblemRecord, TOKEN_SAMPLE, TokenRecord, Totals,
    },
    tasks::Problem,
    waves::{self, Waves},
};

pub use crate::decode::{Encode, Subject};

/// Runs a unit and returns its records in the order of its problems. `problems` are those of its task.
///
/// Every unit starts with a new sampler, so nothing learned carries over; with [waves](Header::wave), every problem.
///
/// # Errors
///
/// A step or a completion that failed; records are never partial.
pub fn run_unit<M: CausalLm>(
    subject: &Subject<'_, M>,
    header: &Header,
    unit: &Unit,
    problems: &[Problem],
) -> Result<Vec<ProblemRecord>, Failure> {
    let arm = &header.arms[unit.arm];
    let task = &header.tasks[unit.task];
    let mut asked = Vec::new();
    for number in unit.problems.clone() {
        let problem = &problems[number];
        asked.push(Asked { number, problem, prompt: (subject.encode)(&problem.prompt)? });
    }
    let record_of = |asked: &Asked<'_>, counters: Counters| ProblemRecord {
        task: task.name.clone(),
        problem: asked.number,
        arm: arm.name.clone(),
        seed: unit.seed,
        prompt: asked.problem.prompt.clone(),
        prompt_tokens: asked.prompt.len(),
        expected: asked.problem.expected.clone(),
        solutions: asked.problem.solutions,
        completions: Vec::new(),
        tally: None,
        totals: Totals::default(),
        batch_counters: counters,
        token_sample: Vec::new(),
    };
    if let Some(wave) = header.wave {
        let run = |asked: &Asked<'_>| {
            let waves = Waves { samples: header.samples, wave, tokens: task.tokens };
            let ran = waves::run(subject, arm, &waves, unit.seed, asked.problem, &asked.prompt)?;
            let record = record_of(asked, ran.counters);
            Ok(ProblemRecord { tally: Some(ran.tally), totals: ran.totals, ..record })
        };
        return asked.iter().map(run).collect();
    }
    let keeps_tokens = header.token_arm.as_ref() == Some(&arm.name);
    let batch = decode(subject, arm, task.tokens, header.samples, unit.seed, &asked, keeps_tokens)?;
    let records = asked.iter().zip(batch.groups).map(|(asked, rows)| {
        let mut record = record_of(asked, batch.counters);
        for (index, (completion, mut meter)) in rows.into_iter().enumerate() {
            record.totals.add(&meter);
            let kept = std::mem::take(&mut meter.kept).into_iter();
            record.token_sample.extend(kept.map(|kept| TokenRecord { completion: index, ..kept }));
            record.completions.push(completion_record(asked.problem, completion, &meter));
        }
        decimate(&mut record.token_sample);
        record
    });
    Ok(records.collect())
}

/// A problem with its encoded prompt.
struct Asked<'p> {
    number: usize,
    problem: &'p Problem,
    prompt: Vec<TokenId>,
}

/// The results of a batch.
struct Batch {
    /// The completions of each prompt, by index.
    groups: Vec<Vec<(Completion, RowMeter)>>,
    counters: Counters,
}

fn decode<M: CausalLm>(
    subject: &Subject<'_, M>,
    arm: &ArmRecord,
    tokens: usize,
    samples: usize,
    seed: u64,
    asked: &[Asked<'_>],
    keeps_tokens: bool,
) -> Result<Batch, Failure> {
    let mut decoder = ArmDecoder::new(subject, arm, tokens, keeps_tokens)?;
    let mut requests = Vec::new();
    for Asked { problem, prompt, .. } in asked {
        requests.extend(decoder.requests(subject, problem, prompt, samples, seed)?);
    }
    // Requests are in the order of their prompts.
    let mut rows = decoder.run(requests)?.into_iter();
    let groups = asked.iter().map(|_| rows.by_ref().take(samples).collect()).collect();
    Ok(Batch { groups, counters: decoder.finish()? })
}

fn completion_record(
    problem: &Problem,
    completion: Completion,
    meter: &RowMeter,
) -> CompletionRecord {
    let tokens = completion.tokens();
    let finish = completion.finish.name().to_owned();
    let text = completion.text.unwrap_or_default();
    let verdict = problem.check(&text);
    let count = meter.tokens as f64;
    CompletionRecord {
        text,
        tokens,
        finish,
        correct: verdict.correct,
        answer: verdict.answer,
        mode: verdict.mode,
        log_prob_sum: meter.log_prob,
        sampling_log_prob_sum: meter.sampling_log_prob,
        mean_entropy: meter.entropy / count,
        mean_reference_entropy: meter.reference_entropy / count,
        mean_kl: meter.kl / count,
        mean_candidates: meter.candidates as f64 / count,
        mean_novelty: meter.novelty.get(),
        mean_relative_novelty: meter.relative_novelty.get(),
        mean_slope: meter.slope.get(),
        mean_sharpening: meter.sharpening.get(),
    }
}

/// Keeps [`TOKEN_SAMPLE`] tokens, in order.
pub fn decimate(tokens: &mut Vec<TokenRecord>) {
    if tokens.len() <= TOKEN_SAMPLE {
        return;
    }
    tokens.sort_by_key(|token| hash(token.completion as u64, token.position));
    tokens.truncate(TOKEN_SAMPLE);
    tokens.sort_by_key(|token| (token.completion, token.position));
}

/// Hashes two numbers with the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn hash(completion: u64, position: u64) -> u64 {
    let mut mixed = (completion << 32 | position).wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ mixed >> 31
}
