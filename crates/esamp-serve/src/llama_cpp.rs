//! Models on llama.cpp.

use std::path::Path;

use clap::builder::RangedU64ValueParser;
use esamp_llama_cpp::{LlamaCpp, LlamaCppError, Options};
use esamp_programs::{
    failure::Failure,
    loaded::Texts,
    model_source::{Cache, ModelSource},
};

use crate::{args::LimitArgs, start::Served};

/// llama.cpp.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "llama.cpp")]
pub struct LlamaCppArgs {
    /// Decode with llama.cpp, which knows most architectures and keeps weights quantised.
    #[arg(long = "llama-cpp", conflicts_with = "weights")]
    pub is_wanted: bool,
    /// CPU threads of llama.cpp [default: all]
    #[arg(long, allow_negative_numbers = true, requires = "is_wanted",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=512))]
    pub threads: Option<usize>,
    /// Number of layers to compute on the GPU, if llama.cpp is built for one.
    #[arg(
        long,
        value_name = "LAYERS",
        default_value_t = 0,
        allow_negative_numbers = true,
        requires = "is_wanted"
    )]
    pub gpu_layers: usize,
    /// Tokens that the key-value cache has room for, over all completions. It is reserved at the start.
    #[arg(long, value_name = "TOKENS", default_value_t = 8192, requires = "is_wanted",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub cells: usize,
    /// Give each row a key-value buffer of its own, of --cells / --max-rows tokens: faster from about 32 rows on.
    #[arg(long, requires = "is_wanted")]
    pub separate_buffers: bool,
}

impl LlamaCppArgs {
    /// Fetches and opens the model.
    pub(crate) fn open(
        &self,
        source: &ModelSource,
        name: String,
        limits: &LimitArgs,
    ) -> Result<Served<LlamaCpp>, Failure> {
        let is_folder = matches!(source, ModelSource::Path(path) if path.is_dir());
        if is_folder || matches!(source, ModelSource::Hub(_)) {
            let error = format!(
                "--model {}: expected a GGUF file, got a Hugging Face model",
                source.name()
            );
            return Err(Failure::usage(error, "give a .gguf file, or drop --llama-cpp"));
        }
        let path = source.fetch(&Cache::from_env()?)?;
        let texts = Texts::open(&path)?;
        let model = self.load(&path, limits.max_rows)?;
        Ok(Served { name, model, texts, weight_bytes: None })
    }

    fn load(&self, path: &Path, rows: usize) -> Result<LlamaCpp, Failure> {
        let mut options = Options::new()
            .with_max_rows(rows)
            .with_cells(self.cells)
            .with_unified_cache(!self.separate_buffers)
            .with_gpu_layers(self.gpu_layers);
        if let Some(threads) = self.threads {
            options = options.with_threads(threads);
        }
        LlamaCpp::load(path, &options).map_err(|error| match error {
            LlamaCppError::Load(error) => Failure::loading(error),
            LlamaCppError::Option { .. } => {
                let next_step = "change --cells or --max-rows: every row needs a cell";
                Failure::usage(error.to_string(), next_step)
            }
            error => {
                Failure::runtime(error, "choose another model, or lower what the message names")
            }
        })
    }
}
