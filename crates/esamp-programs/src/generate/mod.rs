//! The program `generate`: completions of one prompt side by side, plain sampling on the left, ESamp on the right. Each
//! engine has its own example, which says how to open a model.

#![allow(unreachable_pub, reason = "the modules of a program have no public API")]
mod args;
mod arms;
mod page;
mod render;
mod report;
mod settings;
mod trace;

use std::{
    io::{self, Write},
    path::Path,
};

use esamp::{CausalLm, TokenId};

use crate::{
    failure::{End, Failure},
    loaded::Texts,
    model_source::Cache,
};

pub use args::Args;
use arms::Arm;
use page::HtmlFile;
use render::Screen;
use trace::Trace;

/// A model that the program can run.
pub trait Model: CausalLm<Cache: Send> + Send + 'static {}

impl<M: CausalLm<Cache: Send> + Send + 'static> Model for M {}

/// A model that has been opened.
#[derive(Debug)]
pub struct Opened<M> {
    pub model: M,
    /// Bytes of its matrices in memory, if they are known.
    pub weight_bytes: Option<usize>,
}

/// What the KV cache of a model must have room for during a run.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Rows of all columns.
    pub rows: usize,
    /// Tokens of all rows together, if the rows of a column share their prompt.
    pub tokens: usize,
    /// Tokens of the longest row.
    pub longest: usize,
}

/// Runs the program. `open` opens a GGUF file or a Hugging Face folder.
pub fn run<M: Model>(
    args: &Args,
    open: impl Fn(&Path, Needs) -> Result<Opened<M>, Failure>,
) -> Result<(), End> {
    let arms = args.arms()?; // refuses invalid settings before anything is fetched
    let source = args.source()?;
    let other = args.other_source()?;
    args.check_files(&source, other.as_ref())?;
    let trace = args.files.trace.as_deref().map(Trace::create).transpose()?;
    let page = args.files.html.as_deref().map(HtmlFile::create).transpose()?;
    let cache = Cache::from_env()?;
    let path = source.fetch(&cache)?;
    let texts = Texts::open(&path)?;
    let prompt = encode(&texts, args)?;
    let needs = Needs::of(args, arms.len(), prompt.len());
    let Opened { model, weight_bytes } = open(&path, needs)?;
    let mut other = match other {
        Some(source) => Some(open(&source.fetch(&cache)?, needs)?.model),
        None => None,
    };
    let mut arms: Vec<Arm<'_, M>> = arms
        .into_iter()
        .map(|settings| {
            let other = if settings.steered { other.take() } else { None };
            Arm::start(settings, (&model, &texts), other, &prompt, args)
        })
        .collect::<Result<_, _>>()?;
    if let (Some(arm), Some(trace)) = (arms.last_mut(), trace) {
        arm.trace_to(trace);
    }
    if page.is_some() {
        for arm in &mut arms {
            arm.record();
        }
    }

    let mut screen = Screen::new(args.json);
    screen.headline(&source.name(), args, &arms, prompt.len())?;
    // The arms take turns step by step: both columns grow together, and both arms see the same machine
    // load.
    while arms.iter().any(|arm| !arm.is_done()) {
        for arm in &mut arms {
            arm.step()?;
        }
        screen.live(&arms);
    }
    for arm in &mut arms {
        arm.finish();
    }
    // Save before printing: a closed standard output must not lose the snapshot. A failed run saves
    // nothing.
    let mut outcome = arms.iter_mut().try_for_each(Arm::check);
    if let (Ok(()), Some(path), Some(arm)) = (&outcome, &args.files.save, arms.last_mut()) {
        outcome = arm.save(path);
    }
    if let Some(page) = page {
        let written = page.write(&source.name(), args, &arms, &texts.tokenizer);
        outcome = outcome.and(written);
    }
    if args.json {
        report::print((&source.name(), weight_bytes), args, prompt.len(), &arms)?;
    } else {
        screen.result(&arms)?;
    }
    outcome?;
    if let Some(arm) = arms.last() {
        // The run has succeeded even if standard error is closed.
        let _ = writeln!(io::stderr(), "{}", render::summary(arm));
    }
    Ok(())
}

/// Encodes the prompt; as a message to the model unless the flags say otherwise.
fn encode(texts: &Texts, args: &Args) -> Result<Vec<TokenId>, Failure> {
    if args.raw {
        let tokens = texts.tokenizer.encode(&args.prompt);
        return tokens.map_err(|error| Failure::runtime(error, "try another --prompt"));
    }
    texts.encode_message(&args.prompt, "try --raw, which uses no chat template")
}

impl Needs {
    fn of(args: &Args, arms: usize, prompt: usize) -> Self {
        // The columns take turns on one model. The last token of a row is never read.
        let rows = arms.saturating_mul(args.samples);
        let tokens = rows.saturating_mul(args.max_new_tokens);
        let tokens = tokens.saturating_add(arms.saturating_mul(prompt));
        Self { rows, tokens, longest: prompt.saturating_add(args.max_new_tokens) }
    }
}
