//! The overhead of the taps, of this crate's sampling and of ESamp on llama.cpp, compared with llama.cpp's own decode
//! loop and sampler chain (min-p 0.05, temperature 1, dist).
//!
//! ```sh
//! RUSTFLAGS="-C target-cpu=icelake-server" cargo bench -p esamp-llama-cpp --bench overhead
//! ```
//!
//! Without `-C target-cpu`, llama.cpp is compiled for AVX2 and is a third slower, which flatters the ratios.
//! `target-cpu=native` fails on virtual machines that report AMX without having it.
//!
//! Each loop has its own context and reads the same prompt. The loops take turns in blocks of a few steps, so that all
//! see the same machine load and caches of the same length; a ratio is that of two blocks of the same round. Printed
//! are the median and the quartiles over the rounds.

use std::{
    error::Error,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use esamp::{
    CausalLm, Decoder, Request, SamplerConfig, Sampling, TokenId,
    distillers::{DistillerConfig, LowRankConfig},
};
use esamp_llama_cpp::{
    LlamaCpp, Options,
    own_loop::{self, OwnLoop},
};
use esamp_programs::model_source::{Cache, ModelSource};

/// The overhead of the taps, of sampling and of ESamp on llama.cpp.
#[derive(Debug, Parser)]
struct Args {
    /// Numbers of rows to measure.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64])]
    rows: Vec<usize>,
    /// Rounds; each measures one block of every loop.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Steps of a block.
    #[arg(long, default_value_t = 8)]
    steps: usize,
    /// CPU threads of llama.cpp [default: all]
    #[arg(long)]
    threads: Option<usize>,
    /// Give each row a KV buffer of its own.
    #[arg(long)]
    separate_buffers: bool,
    /// Number of layers to compute on the GPU.
    #[arg(long, default_value_t = 0)]
    gpu_layers: usize,
    /// A GGUF file [default: SmolLM2-135M-Instruct, Q4_1]
    #[arg(long)]
    model: Option<PathBuf>,
    /// What `cargo bench` passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Tokens of the prompt.
const PROMPT: usize = 32;

/// The loops, in the order of the table's columns.
const LOOPS: [&str; 5] = ["llama.cpp", "llama.cpp, tapped", "plain", "low-rank 64", "paper"];

/// The ratios of the table: a name, and the loops whose times are divided.
const RATIOS: [(&str, usize, usize); 6] = [
    ("tapped : llama.cpp", 0, 1),
    ("plain : llama.cpp", 0, 2),
    ("low-rank 64 : plain", 2, 3),
    ("paper : plain", 2, 4),
    ("low-rank 64 : llama.cpp", 0, 3),
    ("paper : llama.cpp", 0, 4),
];

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed too, the exit code still reports the failure.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let path = match &args.model {
        Some(path) => path.clone(),
        None => ModelSource::SmolLm2.fetch(&Cache::from_env()?)?,
    };
    let mut out = io::stdout().lock();
    let buffers = if args.separate_buffers { "separate buffers" } else { "one buffer" };
    let flags = option_env!("RUSTFLAGS").unwrap_or_default();
    writeln!(out, "{}, {buffers}, RUSTFLAGS {flags:?}", path.display())?;
    writeln!(out, "llama.cpp built for {}", own_loop::system_info())?;
    for &rows in &args.rows {
        let blocks = measure(args, &path, rows)?;
        writeln!(out, "\n{rows} rows")?;
        for (name, times) in LOOPS.iter().zip(&blocks) {
            let speeds = times.iter().map(|time| (rows * args.steps) as f64 / time).collect();
            writeln!(out, "  {name:<24} {} tokens/s", Quartiles::of(speeds).with(1))?;
        }
        for (name, over, under) in RATIOS {
            let ratios = blocks[over].iter().zip(&blocks[under]).map(|(a, b)| a / b).collect();
            writeln!(out, "  {name:<24} {}", Quartiles::of(ratios).with(3))?;
        }
        out.flush()?; // an interrupted bench keeps its results
    }
    Ok(())
}

/// Seconds of each loop's blocks.
fn measure(args: &Args, path: &PathBuf, rows: usize) -> Result<Vec<Vec<f64>>, Box<dyn Error>> {
    let steps = args.rounds * args.steps + args.steps;
    let longest = PROMPT + steps + 1;
    let cells = if args.separate_buffers { rows * longest } else { PROMPT + rows * (steps + 1) };
    let mut options = Options::new()
        .with_max_rows(rows)
        .with_cells(cells)
        .with_gpu_layers(args.gpu_layers)
        .with_unified_cache(!args.separate_buffers);
    if let Some(threads) = args.threads {
        options = options.with_threads(threads);
    }
    let prompt: Vec<TokenId> = (0..PROMPT as TokenId).map(|at| 1000 + at).collect();
    let mut own = [
        OwnLoop::load(path, &options, Some(MIN_P))?,
        OwnLoop::load_tapped(path, &options, Some(MIN_P))?,
    ];
    for own in &mut own {
        own.start(&prompt, rows)?;
    }
    let models = [
        LlamaCpp::load(path, &options)?,
        LlamaCpp::load(path, &options)?,
        LlamaCpp::load(path, &options)?,
    ];
    let paper = SamplerConfig::new();
    let low_rank =
        SamplerConfig::new().with_distiller(DistillerConfig::LowRank(LowRankConfig::new()));
    let settings = [(0.0, &paper), (0.25, &low_rank), (0.25, &paper)];
    let mut decoders = Vec::new();
    for (model, (beta, config)) in models.iter().zip(settings) {
        let sampler = config.init(model.d_model(), &model.device())?;
        let mut decoder = Decoder::new(model, sampler)?;
        let sampling = Sampling::paper().with_beta(beta).with_min_p(MIN_P);
        let request = Request::new(prompt.clone())
            .with_completions(rows)
            .with_max_new_tokens(steps + 1)
            .with_sampling(sampling);
        decoder.submit(request)?;
        decoder.step()?; // reads the prompt
        decoders.push(decoder);
    }

    let mut blocks = vec![Vec::new(); LOOPS.len()];
    // The first round warms up.
    for round in 0..=args.rounds {
        for turn in 0..LOOPS.len() {
            // Another loop begins each round.
            let which = (turn + round) % LOOPS.len();
            let begin = Instant::now();
            for _ in 0..args.steps {
                match which.checked_sub(own.len()) {
                    None => own[which].step()?,
                    Some(decoder) => drop(decoders[decoder].step()?),
                }
            }
            if let Some(own) = own.get_mut(which) {
                own.rest();
            }
            if round > 0 {
                blocks[which].push(begin.elapsed().as_secs_f64());
            }
        }
    }
    for decoder in &mut decoders[1..] {
        decoder.sampler_mut().finish()?; // fails if nothing was learned
    }
    Ok(blocks)
}

const MIN_P: f32 = 0.05;

/// Median and quartiles.
struct Quartiles([f64; 3]);

impl Quartiles {
    fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        let at = |part: usize| {
            let place = part as f64 / 4.0 * numbers.len().saturating_sub(1) as f64;
            let (low, high) = (numbers[place.floor() as usize], numbers[place.ceil() as usize]);
            low + (high - low) * place.fract()
        };
        Self([at(2), at(1), at(3)])
    }

    fn with(&self, digits: usize) -> String {
        let [median, low, high] = self.0;
        format!("{median:.digits$} [{low:.digits$}, {high:.digits$}]")
    }
}
