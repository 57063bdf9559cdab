//! Runs one batch: prompts in, records out.

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
};

use esamp::{
    CausalLm, Completion, Counters, Decoder, Detokenize, FinishReason, Request, Sampler, TokenId,
    errors::TrainError,
};
use esamp_programs::failure::Failure;

use crate::{
    controls::{GaussianError, ShuffledErrors},
    meter::{Meter, RowMeter},
    plan::Unit,
    record::{
        ArmRecord, CompletionRecord, ErrorName, Header, ProblemRecord, TOKEN_SAMPLE, TokenRecord,
        Totals,
    },
    tasks::Problem,
};

/// Encodes a message as tokens.
pub type Encode<'m> = Box<dyn Fn(&str) -> Result<Vec<TokenId>, Failure> + 'm>;

/// A model with what it needs to read and write text.
pub struct Subject<'m, M> {
    /// The model.
    pub model: &'m M,
    /// Encodes a message to the model.
    pub encode: Encode<'m>,
    /// The detokenizer.
    pub detokenizer: Arc<dyn Detokenize>,
    /// Tokens that end a completion.
    pub stop_tokens: Vec<TokenId>,
}

/// Runs a unit and returns its records in the order of its problems. `problems` are those of its task.
///
/// Every unit starts with a new sampler, so nothing learned carries over.
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
    let keeps_tokens = header.token_arm.as_ref() == Some(&arm.name);
    let batch = decode(subject, arm, task.tokens, header.samples, unit.seed, &asked, keeps_tokens)?;
    let groups = asked.iter().zip(batch.groups);
    let records = groups.map(|(asked, rows)| {
        let mut record = ProblemRecord {
            task: task.name.clone(),
            problem: asked.number,
            arm: arm.name.clone(),
            seed: unit.seed,
            prompt: asked.problem.prompt.clone(),
            prompt_tokens: asked.prompt.len(),
            expected: asked.problem.expected.clone(),
            solutions: asked.problem.solutions,
            completions: Vec::with_capacity(rows.len()),
            tally: None,
            totals: Totals::default(),
            batch_counters: batch.counters,
            token_sample: Vec::new(),
        };
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
    let model = subject.model;
    let mut sampler: Sampler = arm.sampler.init(model.d_model(), &model.device())?;
    match arm.error {
        ErrorName::Own => {}
        ErrorName::Gaussian => sampler.set_expected_control(GaussianError),
        ErrorName::Shuffled => sampler.set_expected_control(ShuffledErrors::default()),
    }
    let sampling = arm.sampling.sampling();
    let meter = Arc::new(Mutex::new(Meter::new(keeps_tokens)));
    let mut decoder = Decoder::new(model, sampler)?
        .with_detokenizer(subject.detokenizer.clone())
        .with_observer(meter.clone());
    for asked in asked {
        let request = Request::new(asked.prompt.clone())
            .with_completions(samples)
            .with_max_new_tokens(tokens)
            .with_seed(seed)
            .with_stop_tokens(subject.stop_tokens.clone())
            .with_prompt_warm_up(arm.prompt_warm_up)
            .with_sampling(sampling.clone())
            .with_reference_log_probs();
        decoder.submit(request).map_err(|error| {
            Failure::runtime(error, "give a model with a longer context, or fewer --tokens")
        })?;
    }
    let step = "report this with the command line that led to it";
    let completions = decoder.run(|_| ControlFlow::Continue(()));
    let completions = completions.map_err(|error| Failure::runtime(error, step))?;
    match decoder.sampler_mut().finish() {
        // The frozen distiller: its update interval exceeds the number of tokens, so it never learns.
        Err(TrainError::NothingLearned { .. }) if arm.sampler.training.update_every > tokens => {}
        finished => {
            finished.map_err(|error| Failure::learning(error, decoder.sampler().counters()))?;
        }
    }

    let mut meter = meter.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rows = Vec::with_capacity(completions.len());
    for completion in completions {
        let row = meter.take(completion.id).unwrap_or_default();
        check(arm, &completion, &row)?;
        rows.push((completion, row));
    }
    // Completions are ordered by request, and requests by prompt.
    let mut rows = rows.into_iter();
    let groups = asked.iter().map(|_| rows.by_ref().take(samples).collect()).collect();
    Ok(Batch { groups, counters: *decoder.sampler().counters() })
}

/// Refuses a completion whose record would be incomplete.
fn check(arm: &ArmRecord, completion: &Completion, meter: &RowMeter) -> Result<(), Failure> {
    let got = match &completion.finish {
        FinishReason::Failed(error) => error.to_string(),
        FinishReason::NoText(error) => error.to_string(),
        finish @ (FinishReason::Aborted | FinishReason::Cancelled) => finish.name().to_owned(),
        _ if meter.tokens != completion.choices.len() as u64 || meter.tokens == 0 => {
            format!("{} tokens of which {} were traced", completion.choices.len(), meter.tokens)
        }
        _ if !meter.log_prob.is_finite() => format!("a log-probability of {}", meter.log_prob),
        _ => return Ok(()),
    };
    Err(Failure::new(
        format!(
            "arm {}, completion {}: expected a complete one, got {got}",
            arm.name, completion.id.index
        ),
        "remove the arm, or report this with the command line that led to it",
    ))
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

impl Totals {
    fn add(&mut self, row: &RowMeter) {
        self.tokens += row.tokens;
        self.steered += row.steered;
        self.interventions += row.interventions;
        self.not_finite += row.not_finite;
        self.candidates += row.candidates;
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
