//! From the command line to a running server.

use std::{
    io::{self, Write},
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use esamp::{
    CausalLm, Decoder, SamplerConfig, Sampling,
    engine::{Engine, EngineConfig},
    errors::ConfigError,
};
use esamp_programs::{
    failure::{End, Failure},
    loaded::Texts,
    model_source::{Cache, ModelSource},
};
use tokio::{
    runtime::{self, Runtime},
    sync::Semaphore,
};

use crate::{
    app::{App, Limits},
    args::Args,
    groups::Groups,
    hosts::Hosts,
    keys::ApiKeys,
    metrics::Traffic,
    serve::{bind, serve},
};

/// A model to serve.
pub struct Served<M> {
    /// The name that clients know it by.
    pub name: String,
    pub model: M,
    pub texts: Texts,
    /// Bytes of its matrices in memory, if they are known.
    pub weight_bytes: Option<usize>,
}

/// Loads the model and serves it until SIGTERM or Ctrl-C.
pub fn run(args: &Args) -> Result<(), End> {
    Sampling::default().with_beta(args.beta).validate().map_err(Failure::from)?;
    args.learning.sampler()?; // before anything is fetched
    let keys = ApiKeys::load(args.api_key_file.as_deref())?;
    let source = match &args.model {
        None => ModelSource::SmolLm2,
        Some(model) => ModelSource::named(model)?,
    };
    let name = args.model_name.clone().unwrap_or_else(|| source.name());
    #[cfg(feature = "llama-cpp")]
    if args.llama_cpp.is_wanted {
        let served = args.llama_cpp.open(&source, name, &args.limits)?;
        return serve_until_signal(args, app(args, keys, served)?);
    }
    let device = args.place.open()?;
    let path = source.fetch(&Cache::from_env()?)?;
    let texts = Texts::open(&path)?;
    let model = args.place.llama(&path, &device)?;
    let weight_bytes = Some(model.weight_bytes());
    let app = app(args, keys, Served { name, model, texts, weight_bytes })?;
    serve_until_signal(args, app)
}

/// Starts the engine, with the limits of the command line.
pub fn app<M>(args: &Args, keys: ApiKeys, served: Served<M>) -> Result<App, Failure>
where
    M: CausalLm + Send + 'static,
    M::Cache: Send,
{
    let context_length = served.model.context_length();
    let limits = Limits {
        body: args.limits.max_body,
        prompt: args.limits.max_prompt.unwrap_or(usize::MAX),
        completions: args.limits.max_n.min(args.limits.max_rows),
        default_tokens: args.limits.default_max_tokens,
        connections: args.limits.max_connections.min(Semaphore::MAX_PERMITS - Limits::SPARE),
        client_timeout: Duration::from_secs(args.limits.client_timeout),
        beta: args.beta,
        min_p: args.learning.usual_min_p().unwrap_or(0.0),
        warm_up_updates: args.learning.warm_up_updates.unwrap_or(0),
    };
    let Served { name, model, texts, weight_bytes } = served;
    let sampler = args.learning.sampler()?;
    let engine = engine(model, &texts, sampler, args).map_err(Failure::from)?;
    let traffic = Traffic::new().map_err(|error| Failure::runtime(error, "report this"))?;
    Ok(App {
        engine,
        texts,
        model: name,
        context_length,
        weight_bytes,
        keys,
        groups: Groups::default(),
        hosts: Hosts::of(args.listen, &args.allowed_hosts),
        places: Arc::new(Semaphore::new(limits.connections)),
        logs_prompts: args.log_prompts,
        started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        is_stopping: false.into(),
        traffic,
        limits,
    })
}

fn engine<M>(
    model: M,
    texts: &Texts,
    sampler: SamplerConfig,
    args: &Args,
) -> Result<Engine, ConfigError>
where
    M: CausalLm + Send + 'static,
    M::Cache: Send,
{
    let limits = &args.limits;
    let sampler = sampler.init(model.d_model(), &model.device())?;
    let decoder = Decoder::new(model, sampler)?
        .with_detokenizer(texts.tokenizer.clone())
        .with_memory_limit(limits.memory.saturating_mul(1 << 20))
        .with_max_rows(limits.max_rows)?
        .with_prefill_budget(limits.prefill_budget)?
        .with_max_groups(limits.max_groups)?;
    let config = EngineConfig::default()
        .with_max_waiting(limits.max_waiting)
        .with_read_timeout(Duration::from_secs(limits.client_timeout));
    Engine::start(decoder, config)
}

fn serve_until_signal(args: &Args, app: App) -> Result<(), End> {
    tracing_subscriber::fmt()
        .with_max_level(args.log)
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    let runtime = threads()
        .map_err(|error| Failure::runtime(error, "check how many threads this user may have"))?;
    let result = runtime.block_on(listen(args, Arc::new(app)));
    runtime.shutdown_background();
    result
}

fn threads() -> io::Result<Runtime> {
    // Prompts are encoded on blocking threads, and more of them than cores would only take turns.
    let cores = available_parallelism().map_or(2, usize::from);
    let mut runtime = runtime::Builder::new_multi_thread();
    runtime.worker_threads(cores.min(4)).max_blocking_threads(cores + 1).enable_all().build()
}

async fn listen(args: &Args, app: Arc<App>) -> Result<(), End> {
    let failed = |error: io::Error| {
        let error = io::Error::new(error.kind(), format!("--listen {}: {error}", args.listen));
        Failure::runtime(error, "choose another address, or port 0 for a free one")
    };
    let stop = signals().map_err(|error| Failure::runtime(error, "report this"))?;
    let listener = bind(args.listen).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    if !address.ip().is_loopback() && !app.keys.are_required() {
        tracing::warn!("everyone who reaches {address} is served: no API keys were given");
    }
    // The one line of standard output, for programs that start this one.
    writeln!(io::stdout(), "{} on http://{address}", app.model)?;
    serve(listener, app, stop, Duration::from_secs(args.grace)).await;
    Ok(())
}

/// What is ready at the next SIGTERM or Ctrl-C.
fn signals() -> io::Result<impl AsyncFnMut()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        Ok(async move || {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    {
        Ok(async || {
            let _ = tokio::signal::ctrl_c().await;
        })
    }
}
