//! Many completions of one prompt in waves, with distillers that go through all of them.
//!
//! All completions at once would be too many rows, and a distiller that learns from all of them at the same time has
//! learned nothing when they choose. The waves of a problem are requests of one group
//! ([`Request::with_group`](esamp::Request::with_group)), one after the other: what earlier waves have said is not
//! novel in later ones.

use esamp::{CausalLm, Counters, GroupId, TokenId};
use esamp_programs::failure::Failure;

use crate::{
    counter::Counter,
    decode::{ArmDecoder, Subject},
    meter::{Mean, RowMeter},
    record::{ArmRecord, Totals},
    tally::{Tally, WaveRecord},
    tasks::Problem,
};

/// The size of a run by waves.
#[derive(Clone, Copy, Debug)]
pub struct Waves {
    /// Completions of a problem.
    pub samples: usize,
    /// Completions of a wave.
    pub wave: usize,
    /// The most tokens of a completion.
    pub tokens: usize,
}

/// What became of a problem.
pub struct Ran {
    pub tally: Tally,
    pub totals: Totals,
    pub counters: Counters,
}

/// The seed of a wave. With a seed of its own, a wave's codes of arithmetic selection are not those of the last one.
fn wave_seed(seed: u64, wave: usize) -> u64 {
    seed.wrapping_add((wave as u64) << 32)
}

/// Runs the waves of a problem.
///
/// # Errors
///
/// An arm whose distillers are not those of a prompt, and a step or completion that failed.
pub fn run<M: CausalLm>(
    subject: &Subject<'_, M>,
    arm: &ArmRecord,
    waves: &Waves,
    seed: u64,
    problem: &Problem,
    prompt: &[TokenId],
) -> Result<Ran, Failure> {
    let mut decoder = ArmDecoder::new(subject, arm, waves.tokens, false)?;
    let (mut counter, mut totals) = (Counter::default(), Totals::default());
    for (number, start) in (0..waves.samples).step_by(waves.wave.max(1)).enumerate() {
        let size = waves.wave.min(waves.samples - start);
        let seed = wave_seed(seed, number);
        let requests = decoder.requests(subject, problem, prompt, size, seed)?;
        let rows = decoder.run(requests.into_iter().map(|one| one.with_group(GroupId(0))))?;
        for (completion, meter) in &rows {
            totals.add(meter);
            let text = completion.text.as_deref().unwrap_or_default();
            counter.add(&problem.check(text), &completion.tokens());
        }
        counter.end_wave(wave_record(rows.iter().map(|(_, meter)| meter)));
    }
    Ok(Ran { tally: counter.tally(), totals, counters: decoder.finish()? })
}

fn wave_record<'r>(rows: impl Iterator<Item = &'r RowMeter>) -> WaveRecord {
    let (mut tokens, mut sums, mut novelty) = (0, [0.0; 3], Mean::default());
    for row in rows {
        tokens += row.tokens;
        for (sum, added) in sums.iter_mut().zip([row.log_prob, row.entropy, row.kl]) {
            *sum += added;
        }
        novelty.merge(row.relative_novelty);
    }
    let [mean_log_prob, mean_entropy, mean_kl] = sums.map(|sum| sum / tokens as f64);
    let mean_relative_novelty = novelty.get();
    WaveRecord { tokens, mean_log_prob, mean_entropy, mean_kl, mean_relative_novelty }
}
