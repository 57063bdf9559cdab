//! The command line, and what is wrong with it.

use std::{fmt, io};

use burn::tensor::Device;
use clap::{Parser, ValueEnum, builder::RangedU64ValueParser};
use esamp::{
    ConfigError, DistillerConfig, LowRankConfig, OptimizerConfig, SamplerConfig, Sampling,
    SamplingConfig, SwiGluConfig,
};

use crate::model_source::{FetchError, ModelSource};

/// Completions of one prompt side by side: plain sampling and ESamp.
#[derive(Debug, Parser)]
#[command(name = "generate", version, args_override_self = true)]
pub struct Args {
    /// What to complete; a chat message unless --raw.
    #[arg(
        long,
        default_value = "Continue this short story in an original way. Write only the continuation.\n\n\
                         The lighthouse had been dark for twenty years when"
    )]
    pub prompt: String,
    /// Completions per arm.
    #[arg(long, default_value_t = 4, value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub samples: usize,
    /// The most tokens of a completion.
    #[arg(long, default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub max_new_tokens: usize,
    /// Exploration strength; 0 is plain sampling.
    #[arg(long, default_value_t = SamplingConfig::DEFAULT_BETA, allow_negative_numbers = true)]
    pub beta: f32,
    /// Temperature; 0 takes the best token.
    #[arg(long, default_value_t = SamplingConfig::DEFAULT_TEMPERATURE, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Keep tokens at least this many times as likely as the best one; 0 keeps all.
    #[arg(long, default_value_t = 0.05, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Keep the best tokens that together have this probability.
    #[arg(long, allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Keep so many of the best tokens.
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The network that learns to expect the deep hidden state.
    #[arg(long, value_enum, default_value_t = DistillerName::Swiglu)]
    pub distiller: DistillerName,
    /// Learning rate of the distiller [default: 4e-4 for swiglu, 1e-3 for low-rank]
    #[arg(long, allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = DeviceName::Flex)]
    pub device: DeviceName,
    /// A GGUF file, a Hugging Face folder, or hf:ORG/NAME [default: SmolLM2-135M-Instruct]
    #[arg(long)]
    pub model: Option<String>,
    /// Complete the prompt as it is, without the model's chat template.
    #[arg(long)]
    pub raw: bool,
    /// Only plain sampling.
    #[arg(long)]
    pub plain: bool,
    /// Print one JSON object instead.
    #[arg(long)]
    pub json: bool,
}

/// The distillers that the library has a name for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DistillerName {
    /// The paper's: two residual SwiGLU blocks.
    Swiglu,
    /// The reference implementation's: a low-rank gated residual.
    LowRank,
}

/// The backends that examples can be built with.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DeviceName {
    /// CPU.
    Flex,
    /// CPU, deprecated and slow.
    Ndarray,
    /// NVIDIA GPU.
    Cuda,
    /// Any GPU.
    Wgpu,
    /// A GPU with a Vulkan driver.
    Vulkan,
}

/// One column.
#[derive(Clone, Debug)]
pub struct ArmSettings {
    pub name: &'static str,
    pub sampling: Sampling,
    pub sampler: SamplerConfig,
}

impl Args {
    /// The columns, with settings that have been checked.
    pub fn arms(&self) -> Result<Vec<ArmSettings>, Failure> {
        let sampling = |beta: f32| -> Result<Sampling, ConfigError> {
            let mut config =
                SamplingConfig::default().with_temperature(self.temperature).with_beta(beta);
            if let Some(k) = self.top_k {
                config = config.with_top_k(k);
            }
            if let Some(p) = self.top_p {
                config = config.with_top_p(p);
            }
            if self.min_p != 0.0 {
                config = config.with_min_p(self.min_p);
            }
            config.init()
        };
        let distiller = match self.distiller {
            DistillerName::Swiglu => DistillerConfig::SwiGlu(SwiGluConfig::new()),
            DistillerName::LowRank => DistillerConfig::LowRank(LowRankConfig::new()),
        };
        let optimizer: Option<OptimizerConfig> =
            self.learning_rate.map(|rate| distiller.default_optimizer().with_learning_rate(rate));
        if let Some(optimizer) = optimizer {
            optimizer.validate()?;
        }
        let sampler = SamplerConfig::new().with_distiller(distiller).with_optimizer(optimizer);
        let mut arms =
            vec![ArmSettings { name: "plain", sampling: sampling(0.0)?, sampler: sampler.clone() }];
        let esamp = sampling(self.beta)?;
        if !self.plain {
            arms.push(ArmSettings { name: "esamp", sampling: esamp, sampler });
        }
        Ok(arms)
    }

    /// The model asked for.
    pub fn source(&self) -> Result<ModelSource, Failure> {
        match &self.model {
            None => Ok(ModelSource::SmolLm2),
            Some(model) => Ok(model.parse::<ModelSource>()?),
        }
    }
}

impl DeviceName {
    /// The device, if it was built in and is there.
    pub fn open(self) -> Result<Device, Failure> {
        match self {
            Self::Flex => Ok(Device::flex()),
            #[allow(deprecated, reason = "deprecated upstream and supported here")]
            Self::Ndarray => Ok(Device::ndarray()),
            #[cfg(feature = "cuda")]
            Self::Cuda => found("cuda", burn::tensor::DeviceType::Cuda),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => found("wgpu", burn::tensor::DeviceType::Wgpu),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => found("vulkan", burn::tensor::DeviceType::Vulkan),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda => Err(not_built("cuda")),
            #[cfg(not(feature = "wgpu"))]
            Self::Wgpu => Err(not_built("wgpu")),
            #[cfg(not(feature = "vulkan"))]
            Self::Vulkan => Err(not_built("vulkan")),
        }
    }
}

#[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
fn found(name: &str, kind: burn::tensor::DeviceType) -> Result<Device, Failure> {
    let device = Device::enumerate(kind).into_vec().into_iter().next();
    device.ok_or_else(|| Failure {
        code: Failure::RUNTIME,
        error: format!("--device {name}: expected a device of this kind, none was found"),
        next_step: "install its driver, or use --device flex".to_owned(),
    })
}

#[cfg(not(all(feature = "cuda", feature = "wgpu", feature = "vulkan")))]
fn not_built(name: &str) -> Failure {
    Failure {
        code: Failure::USAGE,
        error: format!("--device {name}: expected a program built with it, this one is not"),
        next_step: format!(
            "cargo run --release --features {name} --example generate -- --device {name}"
        ),
    }
}

/// Why the program ends early.
#[derive(Debug)]
pub enum End {
    Failed(Failure),
    /// Whoever was reading the output has what it wanted: `| head`.
    ReaderGone,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<FetchError> for End {
    fn from(error: FetchError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<io::Error> for End {
    /// Of standard output.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::Failed(Failure::runtime(error, "check where standard output goes")),
        }
    }
}

/// What went wrong, and what to do about it.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    error: String,
    next_step: String,
}

impl Failure {
    const RUNTIME: u8 = 1;
    const USAGE: u8 = 2;

    /// Something went wrong while running.
    pub fn runtime(error: impl std::error::Error, next_step: &str) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Self::new(message, next_step)
    }

    /// Something went wrong while running, in words.
    pub fn new(error: String, next_step: &str) -> Self {
        Self { code: Self::RUNTIME, error, next_step: next_step.to_owned() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\nnext step: {}", self.error, self.next_step)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self {
            code: Self::USAGE,
            error: error.to_string(),
            next_step: "choose a value in the range; --help lists the settings".to_owned(),
        }
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        let code = match error {
            FetchError::Unknown(_) => Self::USAGE,
            _ => Self::RUNTIME,
        };
        Self { code, next_step: error.next_step().to_owned(), error: error.to_string() }
    }
}
