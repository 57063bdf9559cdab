//! Runs one configuration: two decoders that alternate.

use std::{error::Error, fmt, time::Instant};

use clap::ValueEnum;
use esamp::{
    CausalLm, Counters, Decoder, Request, Sampler, SamplerConfig, Sampling, Sharing, TokenId,
    distillers::{DistillerConfig, LowRankConfig, SwiGluConfig},
    llama::Llama,
    optim::{Staleness, TrainingConfig},
    unstable::LogitsTransfer,
};
use serde::Serialize;

use super::{
    device::DeviceName,
    floor::{Bytes, Work},
    subject::Subject,
};

/// The distillers to compare.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DistillerName {
    /// The reference implementation's, with rank 64.
    LowRank,
    /// The paper's.
    #[value(name = "swiglu")]
    SwiGlu,
}

impl DistillerName {
    pub fn config(self) -> DistillerConfig {
        match self {
            Self::LowRank => DistillerConfig::LowRank(LowRankConfig::new()),
            Self::SwiGlu => DistillerConfig::SwiGlu(SwiGluConfig::new()),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::LowRank => "low-rank 64",
            Self::SwiGlu => "swiglu (paper)",
        }
    }
}

/// The filters to compare.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FilterName {
    /// min-p 0.05.
    MinP,
    /// top-p 0.95.
    TopP,
    None,
}

impl FilterName {
    fn sampling(self, beta: f32) -> Sampling {
        let plain = Sampling::paper().with_beta(beta);
        match self {
            Self::MinP => plain.with_min_p(0.05),
            Self::TopP => plain.with_top_p(0.95),
            Self::None => plain,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::MinP => "min-p .05",
            Self::TopP => "top-p .95",
            Self::None => "no filter",
        }
    }
}

/// One configuration, run with and without ESamp.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub prompts: usize,
    pub completions: usize,
    pub filter: FilterName,
    pub distiller: DistillerName,
    pub beta: f32,
    pub sharing: Sharing,
    /// Whether updates run on a separate thread.
    pub background: bool,
    /// Whether all logits are copied to the host.
    pub whole_logits: bool,
    /// Whether the decoders alternate step by step; otherwise generation by generation.
    pub in_turns: bool,
}

/// The results of one configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    config: String,
    model: &'static str,
    dtype: &'static str,
    /// Bytes of the model's matrices in memory.
    weight_bytes: usize,
    device: &'static str,
    rows: usize,
    distiller: DistillerName,
    beta: f32,
    tokens_per_second_plain: f64,
    tokens_per_second_esamp: f64,
    /// Median over rounds of plain time divided by steered time.
    ratio: f64,
    q1: f64,
    q3: f64,
    /// The best ratio the counted work allows.
    floor: f64,
    floor_flops: f64,
    floor_bytes: f64,
    updates: u64,
    rows_learned: u64,
    candidates_per_token: f64,
    /// Copies to the host that a step waited for, and the share of rows whose logits were copied in a second one.
    transfers_per_step: f64,
    read_whole: f64,
    /// Milliseconds per step spent in each stage, without and with ESamp.
    stages_plain: Stages,
    stages_esamp: Stages,
    #[serde(skip)]
    work: Work,
    /// Steps of the sampler for each that learns: those of first tokens do not, and every prompt has one of its own.
    #[serde(skip)]
    steps_per_update: f64,
}

/// Milliseconds per step, by stage.
type Stages = Vec<(&'static str, f64)>;

impl Case {
    pub fn name(&self) -> String {
        let mut name = format!(
            "{} x {}, {}, {}, beta {}",
            self.prompts,
            self.completions,
            self.filter.name(),
            self.distiller.name(),
            self.beta
        );
        if self.sharing == Sharing::Global {
            name += ", global";
        }
        if self.background {
            name += ", background";
        }
        if self.whole_logits {
            name += ", whole logits";
        }
        name
    }

    /// The number of distillers that learn in a step.
    pub fn slots(&self) -> usize {
        if self.sharing == Sharing::Global { 1 } else { self.prompts }
    }

    /// Runs the case. The first round warms up caches and threads and is not counted.
    pub fn run(
        &self,
        subject: &Subject,
        device: DeviceName,
        rounds: usize,
        tokens: usize,
    ) -> Result<Figures, Box<dyn Error>> {
        let model = &subject.model;
        let prompts = subject.prompts(self.prompts)?;
        let mut arms = [self.decoder(model)?, self.decoder(model)?];
        let (mut ratios, mut speeds) = (Vec::new(), [Vec::new(), Vec::new()]);
        for round in 0..=rounds {
            let seconds = self.round(&mut arms, &prompts, round, tokens)?;
            if round > 0 {
                ratios.push(seconds[0] / seconds[1]);
                // The first `Decoder::step` yields two tokens: one from the prefill, one from the decode
                // step.
                let decoded = (self.prompts * self.completions * (tokens - 2)) as f64;
                for (speeds, seconds) in speeds.iter_mut().zip(seconds) {
                    speeds.push(decoded / seconds);
                }
            }
        }
        for arm in &mut arms {
            arm.sampler_mut().finish()?;
        }
        let counters = *arms[1].sampler().counters();
        self.check(&counters, rounds + 1, tokens)?;
        let candidates = counters.candidates as f64 / counters.tokens as f64;
        let weight_bytes = model.weight_bytes();
        let bytes = Bytes { of_weights: weight_bytes, of_number: subject.dtype.dtype().size() };
        let work = Work::of(model.config(), self, bytes, candidates, tokens);
        let [plain, esamp] = speeds.map(|speeds| quantile(speeds, 0.5));
        Ok(Figures {
            config: self.name(),
            model: subject.name,
            dtype: subject.dtype.name(),
            weight_bytes,
            device: device.name(),
            rows: self.prompts * self.completions,
            distiller: self.distiller,
            beta: self.beta,
            tokens_per_second_plain: plain,
            tokens_per_second_esamp: esamp,
            ratio: quantile(ratios.clone(), 0.5),
            q1: quantile(ratios.clone(), 0.25),
            q3: quantile(ratios, 0.75),
            floor: work.floor_flops().min(work.floor_bytes()),
            floor_flops: work.floor_flops(),
            floor_bytes: work.floor_bytes(),
            updates: counters.updates,
            rows_learned: counters.rows_learned,
            candidates_per_token: candidates,
            transfers_per_step: counters.transfers as f64 / counters.steps as f64,
            read_whole: counters.rows_read_whole as f64 / counters.tokens as f64,
            stages_plain: stages(arms[0].sampler()),
            stages_esamp: stages(arms[1].sampler()),
            work,
            steps_per_update: (counters.steps * self.slots() as u64) as f64
                / counters.updates.max(1) as f64,
        })
    }

    fn decoder<'m>(&self, model: &'m Llama) -> Result<Decoder<&'m Llama>, Box<dyn Error>> {
        let staleness = if self.background { Staleness::Background } else { Staleness::Inline };
        let transfer =
            if self.whole_logits { LogitsTransfer::Whole } else { LogitsTransfer::Automatic };
        let sampler = SamplerConfig::new()
            .with_distiller(self.distiller.config())
            .with_sharing(self.sharing)
            .with_training(TrainingConfig::new().with_staleness(staleness))
            .with_logits_transfer(transfer);
        Ok(Decoder::new(model, sampler.init(model.d_model(), &model.device())?)?)
    }

    /// Runs one generation in both arms. Returns the seconds each spent in decode steps, without the
    /// prefills.
    fn round(
        &self,
        arms: &mut [Decoder<&Llama>; 2],
        prompts: &[Vec<TokenId>],
        round: usize,
        tokens: usize,
    ) -> Result<[f64; 2], Box<dyn Error>> {
        let mut seconds = [0.0; 2];
        let mut turn = round % 2;
        if !self.in_turns {
            for place in [turn, 1 - turn] {
                let arm = &mut arms[place];
                self.begin(arm, place, prompts, round, tokens)?;
                finish_updates(arm)?;
                let started = Instant::now();
                while !arm.is_idle() {
                    arm.step()?;
                }
                finish_updates(arm)?;
                seconds[place] = started.elapsed().as_secs_f64();
            }
            return Ok(seconds);
        }
        // The order alternates, because the arm that starts first allocates memory first.
        for place in [turn, 1 - turn] {
            self.begin(&mut arms[place], place, prompts, round, tokens)?;
        }
        while arms.iter().any(|arm| !arm.is_idle()) {
            for place in [turn, 1 - turn] {
                if !arms[place].is_idle() {
                    let started = Instant::now();
                    arms[place].step()?;
                    seconds[place] += started.elapsed().as_secs_f64();
                }
            }
            turn = 1 - turn; // the first arm runs with cold caches
        }
        Ok(seconds)
    }

    /// Submits the prompts and runs the prefill and the first decode step.
    fn begin(
        &self,
        arm: &mut Decoder<&Llama>,
        place: usize,
        prompts: &[Vec<TokenId>],
        round: usize,
        tokens: usize,
    ) -> Result<(), Box<dyn Error>> {
        let sampling = self.filter.sampling([0.0, self.beta][place]);
        for prompt in prompts {
            let request = Request::new(prompt.clone())
                .with_completions(self.completions)
                .with_max_new_tokens(tokens)
                .with_seed(round as u64)
                .with_sampling(sampling.clone());
            arm.submit(request)?;
        }
        arm.step()?;
        Ok(())
    }

    /// Fails if a run did not do the work it was timed for.
    fn check(&self, counters: &Counters, rounds: usize, tokens: usize) -> Result<(), String> {
        let rows = (self.prompts * self.completions) as u64;
        let steps = (rounds * (tokens - 1)) as u64;
        let steered = if self.beta == 0.0 { 0 } else { 1 };
        let expected = (rows * steps * steered, self.slots() as u64 * steps * steered);
        let got = (counters.rows_learned, counters.updates);
        if got == expected && counters.tokens == rows * (rounds * tokens) as u64 {
            return Ok(());
        }
        Err(format!(
            "{}: expected {} rows learned in {} updates, got {} in {}; the run did not measure what it should",
            self.name(),
            expected.0,
            expected.1,
            got.0,
            got.1
        ))
    }
}

/// Waits until all work that the arm has started is finished.
fn finish_updates(arm: &mut Decoder<&Llama>) -> Result<(), Box<dyn Error>> {
    arm.sampler_mut().finish()?;
    arm.model().device().sync().map_err(|error| format!("device: {error:?}"))?;
    Ok(())
}

/// The time a sampler spent in each stage per step, including the first round and the first tokens.
fn stages(sampler: &Sampler) -> Stages {
    let steps = sampler.counters().steps as f64;
    sampler.stage_seconds().named().map(|(name, seconds)| (name, 1e3 * seconds / steps)).to_vec()
}

/// The quantile by linear interpolation between order statistics.
fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = q * (values.len() - 1) as f64;
    let (low, high) = (values[place.floor() as usize], values[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

impl Figures {
    /// Milliseconds of a step without ESamp.
    pub fn plain_ms(&self) -> f64 {
        1e3 * self.rows as f64 / self.tokens_per_second_plain
    }

    /// Milliseconds that ESamp adds to the stages of a decode step. Their times vary far less than those of whole steps, most
    /// of which is the model's.
    pub fn extra_ms(&self) -> f64 {
        let total = |stages: &Stages| stages.iter().map(|(_, ms)| ms).sum::<f64>();
        (total(&self.stages_esamp) - total(&self.stages_plain)) * self.steps_per_update
    }

    /// The counted work of a step.
    pub fn work(&self) -> Work {
        self.work
    }

    pub fn header() -> String {
        format!(
            "{:<44} {:>8} {:>8}   {:<20} {:>6}  {:>8}",
            "prompts x completions", "plain/s", "ESamp/s", "ratio [quartiles]", "floor", "updates"
        )
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = format!("{:.3} [{:.3}, {:.3}]", self.ratio, self.q1, self.q3);
        write!(
            f,
            "{:<44} {:>8.1} {:>8.1}   {:<20} {:>6.3}  {:>8}",
            self.config,
            self.tokens_per_second_plain,
            self.tokens_per_second_esamp,
            ratio,
            self.floor,
            self.updates
        )?;
        for (arm, stages) in [("plain", &self.stages_plain), ("ESamp", &self.stages_esamp)] {
            let total: f64 = stages.iter().map(|(_, ms)| ms).sum();
            write!(f, "\n    {arm} {total:.2} ms/step:")?;
            for (name, ms) in stages {
                write!(f, " {name} {ms:.2}")?;
            }
        }
        write!(
            f,
            "\n    {:.1} candidates per token, {:.2} transfers per step, {:.1} % of rows read whole in a second one",
            self.candidates_per_token,
            self.transfers_per_step,
            100.0 * self.read_whole
        )
    }
}
