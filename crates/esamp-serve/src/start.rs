//! From the command line to a running server.

use std::{
    io::{self, Write},
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use esamp::{
    CausalLm, Decoder, Sampler, SamplerConfig, Sampling,
    engine::{Engine, EngineConfig},
    errors::ConfigError,
    llama::Tokenizer,
};
use esamp_programs::{
    failure::{End, Failure},
    loaded::Loaded,
    model_source::{Cache, ModelSource},
};
use tokio::{net::TcpListener, runtime};

use crate::{
    app::{App, Limits},
    args::{Args, LimitArgs},
    groups::Groups,
    keys::ApiKeys,
    serve::serve,
};

/// Loads the model and serves it until SIGTERM or Ctrl-C.
pub fn run(args: &Args) -> Result<(), End> {
    Sampling::default().with_beta(args.beta).validate().map_err(Failure::from)?;
    let keys = ApiKeys::load(args.api_key_file.as_deref())?;
    let source = match &args.model {
        None => ModelSource::SmolLm2,
        Some(model) => ModelSource::named(model)?,
    };
    let device = args.device.open()?;
    let loaded = Loaded::open(&source.fetch(&Cache::from_env()?)?, &device)?;
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    let context_length = loaded.model.context_length();
    let (limits, engine) =
        engine(loaded.model, &loaded.tokenizer, &args.limits, args.beta).map_err(Failure::from)?;
    let app = App {
        engine,
        tokenizer: loaded.tokenizer,
        template: loaded.template,
        model: args.model_name.clone().unwrap_or_else(|| source.name()),
        context_length,
        keys,
        groups: Groups::new(args.limits.max_groups),
        logs_prompts: args.log_prompts,
        started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        is_stopping: false.into(),
        traffic: Default::default(),
        limits,
    };
    // Prompts are encoded on blocking threads, and more of them than cores would only take turns.
    let cores = available_parallelism().map_or(2, usize::from);
    let mut runtime = runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(cores.min(4)).max_blocking_threads(cores + 1).enable_all();
    let runtime = runtime
        .build()
        .map_err(|error| Failure::runtime(error, "check how many threads this user may have"))?;
    let result = runtime.block_on(listen(args, Arc::new(app)));
    runtime.shutdown_background();
    result
}

/// Starts the engine with the limits of the command line.
pub fn engine<M>(
    model: M,
    tokenizer: &Tokenizer,
    args: &LimitArgs,
    beta: f32,
) -> Result<(Limits, Engine), ConfigError>
where
    M: CausalLm + Send + 'static,
    M::Cache: Send,
{
    let sampler: Sampler = SamplerConfig::new().init(model.d_model(), &model.device())?;
    let client_timeout = Duration::from_secs(args.client_timeout);
    let decoder = Decoder::new(model, sampler)?
        .with_detokenizer(tokenizer.clone())
        .with_kv_limit(args.kv_limit.saturating_mul(1 << 20))
        .with_max_rows(args.max_rows)?
        .with_prefill_budget(args.prefill_budget)?
        .with_max_groups(args.max_groups)?;
    let config = EngineConfig::default()
        .with_max_waiting(args.max_waiting)
        .with_read_timeout(client_timeout);
    let limits = Limits {
        body: args.max_body,
        prompt: args.max_prompt.unwrap_or(usize::MAX),
        completions: args.max_n.min(args.max_rows),
        connections: args.max_connections.min(tokio::sync::Semaphore::MAX_PERMITS),
        client_timeout,
        beta,
    };
    Ok((limits, Engine::start(decoder, config)?))
}

async fn listen(args: &Args, app: Arc<App>) -> Result<(), End> {
    let failed = |error: io::Error| {
        let error = io::Error::new(error.kind(), format!("--listen {}: {error}", args.listen));
        Failure::runtime(error, "choose another address, or port 0 for a free one")
    };
    let stop = signals().map_err(|error| Failure::runtime(error, "report this"))?;
    let listener = TcpListener::bind(args.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    if !address.ip().is_loopback() && !app.keys.are_required() {
        tracing::warn!("everyone who reaches {address} is served: no API keys were given");
    }
    // The one line of standard output, for programs that start this one.
    writeln!(io::stdout(), "{} on http://{address}", app.model)?;
    serve(listener, app, stop, Duration::from_secs(args.grace)).await;
    Ok(())
}

/// Ready at the first SIGTERM or Ctrl-C.
fn signals() -> io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        Ok(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    {
        Ok(async {
            let _ = tokio::signal::ctrl_c().await;
        })
    }
}
