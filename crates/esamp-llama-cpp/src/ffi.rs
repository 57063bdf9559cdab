//! Everything that calls C. The rest of the crate is safe Rust on top of [`Context`] and [`Chain`].
//!
//! A [`Context`] owns a model, a llama.cpp context, its threads and the place where the callback stores hidden states.
//! All of its calls that change the context take `&mut self`, so the borrow checker serialises them; sharing it between
//! threads is left to a mutex.
//!
//! llama.cpp ends the process when an assertion fails. So ids, positions and sizes are checked before they get here. A
//! C++ exception ends the process too, because it cannot unwind into Rust. llama.cpp catches its own while it loads a
//! model and creates a context, where it allocates what it needs; later only the allocations of a few bytes of C++'s
//! library are left.
#![allow(unsafe_code, reason = "llama.cpp is a C library: this file is the only one that calls it")]

use std::{
    cell::RefCell,
    ffi::{CStr, CString, c_char, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    ptr::NonNull,
    slice,
    sync::Once,
};

use llama_cpp_sys_2 as sys;

use crate::{error::LlamaCppError, options::Options};

/// A token of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) token: i32,
    pub(crate) position: i32,
    pub(crate) sequence: i32,
    /// Whether logits of this position are wanted, and the states after which llama.cpp drops the others.
    pub(crate) output: bool,
}

/// What the callback stores: one entry per tensor that is wanted.
struct Taps {
    wanted: Vec<Tapped>,
    panicked: bool,
}

/// Values of one tensor, `[rows, width]`.
pub(crate) struct Tapped {
    pub(crate) name: String,
    pub(crate) values: Vec<f32>,
    pub(crate) width: usize,
}

/// A model with its context.
#[derive(Debug)]
pub(crate) struct Context {
    model: NonNull<sys::llama_model>,
    context: NonNull<sys::llama_context>,
    taps: NonNull<Taps>,
    threads: NonNull<sys::ggml_threadpool>,
    pub(crate) d_model: usize,
    pub(crate) vocab: usize,
    pub(crate) layers: usize,
    /// Cells of the whole cache, and of one sequence.
    pub(crate) cells: usize,
    pub(crate) cells_of_a_row: usize,
    /// The context length that the model was trained with, if the file says so.
    pub(crate) trained_length: Option<usize>,
    /// Tokens that layers with a sliding window see, if there are some.
    pub(crate) window: Option<usize>,
    /// `logit_scale` of the file. Architectures multiply or divide by it.
    pub(crate) logit_scale: Option<f32>,
    /// Whether the threads sleep between passes.
    pub(crate) rests: bool,
    /// Maximum number of tokens, and of outputs among them, of one call of [`decode`](Self::decode).
    pub(crate) batch: usize,
    pub(crate) outputs: usize,
}

// SAFETY: llama.cpp ties neither a model nor a context to the thread that made it. The pointers are owned by this
// value alone, and `Context` is not `Sync`, so one thread at a time uses them.
unsafe impl Send for Context {}

thread_local! {
    /// Lines that llama.cpp logged as errors on this thread since they were last taken.
    static ERRORS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// The most lines kept for the text of an error.
const MAX_ERRORS: usize = 8;

/// The least number of outputs of a batch: the states of a prompt's positions are read in batches of outputs.
const MIN_OUTPUTS: usize = 32;

fn take_errors() -> String {
    let lines = ERRORS.with(|errors| std::mem::take(&mut *errors.borrow_mut()));
    if lines.is_empty() { "no reason was logged".to_owned() } else { lines.join("; ") }
}

/// Passes a line of llama.cpp's log on to the `log` crate.
unsafe extern "C" fn log_line(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    // A panic of the application's logger must not unwind into C; there is nobody to report it to.
    let _ = catch_unwind(|| {
        if text.is_null() {
            return;
        }
        // SAFETY: llama.cpp passes a string that ends with 0 and lives until the callback returns.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        let severity = match level {
            sys::GGML_LOG_LEVEL_ERROR => log::Level::Error,
            sys::GGML_LOG_LEVEL_WARN => log::Level::Warn,
            // What llama.cpp calls info is a page of details about every model that it loads.
            sys::GGML_LOG_LEVEL_INFO => log::Level::Debug,
            _ => log::Level::Trace,
        };
        if severity == log::Level::Error {
            ERRORS.with(|errors| {
                let mut errors = errors.borrow_mut();
                if errors.len() < MAX_ERRORS {
                    errors.push(text.to_owned());
                }
            });
        }
        log::log!(target: "llama.cpp", severity, "{text}");
    });
}

/// Copies a tensor that is wanted. llama.cpp calls it with `ask` before it computes a node, and once more after the
/// node if the answer was true.
unsafe extern "C" fn tap(tensor: *mut sys::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: `data` is the `Taps` of the context that calls; while `llama_decode` runs, nothing else refers to it.
    let taps = unsafe { &mut *data.cast::<Taps>() };
    if taps.wanted.is_empty() {
        return false;
    }
    let copied = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: llama.cpp passes a valid tensor, whose name ends with 0.
        let tensor_ref = unsafe { &*tensor };
        // SAFETY: as above.
        let name = unsafe { CStr::from_ptr(tensor_ref.name.as_ptr()) }.to_bytes();
        let Some(place) = taps.wanted.iter_mut().find(|place| place.name.as_bytes() == name) else {
            return false;
        };
        if ask {
            return true;
        }
        let [width, rows] = [tensor_ref.ne[0] as usize, tensor_ref.ne[1] as usize];
        // SAFETY: the tensor is valid.
        let (bytes, is_dense) =
            unsafe { (sys::ggml_nbytes(tensor), sys::ggml_is_contiguous(tensor)) };
        // Hidden states are dense matrices of f32. Anything else stays unrecorded, which the caller reports.
        let is_matrix = is_dense && bytes == width * rows * size_of::<f32>();
        if tensor_ref.type_ == sys::GGML_TYPE_F32 && is_matrix {
            let from = place.values.len();
            place.width = width;
            place.values.resize(from + width * rows, 0.0);
            // SAFETY: the tensor has `bytes` bytes, for which there is room from `from` on.
            unsafe {
                let to = place.values.as_mut_ptr().add(from).cast::<c_void>();
                sys::ggml_backend_tensor_get(tensor, to, 0, bytes);
            }
        }
        true
    }));
    copied.unwrap_or_else(|_| {
        taps.panicked = true;
        // For `ask` false means "not wanted"; afterwards it ends the computation.
        false
    })
}

impl Context {
    /// Loads a model and creates its context. Without `taps`, llama.cpp computes each graph in one piece.
    pub(crate) fn load(path: &Path, options: &Options, taps: bool) -> Result<Self, LlamaCppError> {
        static INIT: Once = Once::new();
        // SAFETY: both may be called at any time, and `Once` calls them once; the callback is a static function.
        INIT.call_once(|| unsafe {
            sys::llama_log_set(Some(log_line), std::ptr::null_mut());
            sys::llama_backend_init();
        });
        let shown = path.display().to_string();
        let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| {
            let expected = "a path without a zero byte".to_owned();
            LlamaCppError::Option { option: "path", expected, got: shown }
        })?;
        // SAFETY: no requirements.
        if options.gpu_layers != Some(0) && !unsafe { sys::llama_supports_gpu_offload() } {
            let expected = "0, because llama.cpp found no GPU that it was built for".to_owned();
            let got = options.gpu_layers.map_or("all".to_owned(), |layers| layers.to_string());
            return Err(LlamaCppError::Option { option: "gpu_layers", expected, got });
        }
        take_errors();
        // SAFETY: no requirements.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.n_gpu_layers = options.gpu_layers.map_or(-1, |layers| layers as i32);
        params.load_mode =
            if options.mmap { sys::LLAMA_LOAD_MODE_MMAP } else { sys::LLAMA_LOAD_MODE_NONE };
        // SAFETY: the path ends with 0 and outlives the call; the parameters are llama.cpp's own, with numbers changed.
        let model = unsafe { sys::llama_model_load_from_file(path.as_ptr(), params) };
        let Some(model) = NonNull::new(model) else {
            return Err(LlamaCppError::Setup { action: "load the model", reason: take_errors() });
        };
        let loaded = check_model(model).and_then(|()| Self::with_model(model, options, taps));
        if loaded.is_err() {
            // SAFETY: no context refers to the model: creating one is the last step, and it failed or never ran.
            unsafe { sys::llama_model_free(model.as_ptr()) };
        }
        loaded
    }

    /// Creates the context of a model. The model stays the caller's if this fails.
    fn with_model(
        model: NonNull<sys::llama_model>,
        options: &Options,
        with_taps: bool,
    ) -> Result<Self, LlamaCppError> {
        let taps = Box::new(Taps { wanted: Vec::new(), panicked: false });
        let taps = NonNull::from(Box::leak(taps));
        // One batch must hold a token of every row.
        let batch = options.batch.max(options.max_rows);
        // llama.cpp reserves memory for the logits of this many positions. It would take `batch`, 100 MB for a
        // vocabulary of 49,152, though a pass needs one position per row.
        let outputs = options.max_rows.max(MIN_OUTPUTS).min(batch);
        // SAFETY: no requirements.
        let mut params = unsafe { sys::llama_context_default_params() };
        // SAFETY: the model is valid.
        let trained_length = unsafe { sys::llama_model_n_ctx_train(model.as_ptr()) };
        let trained_length = usize::try_from(trained_length).ok().filter(|&length| length > 0);
        // No row may be longer than the model was trained for, so more cells would never be used.
        let most = trained_length.unwrap_or(usize::MAX).saturating_mul(options.max_rows);
        params.n_ctx = options.cells.min(most) as u32;
        params.n_batch = batch as u32;
        params.n_ubatch = batch as u32;
        params.n_outputs_max = outputs as u32;
        params.n_seq_max = options.max_rows as u32;
        params.n_threads = options.threads as i32;
        params.n_threads_batch = options.threads as i32;
        params.kv_unified = options.unified_cache;
        // All cells of layers with a sliding window are kept: a pass that fails is undone, which needs them.
        params.swa_full = true;
        // `embeddings` stays off: it makes every token of a prompt an output, at the cost of its logits.
        if with_taps {
            params.cb_eval = Some(tap);
            params.cb_eval_user_data = taps.as_ptr().cast();
        }
        // SAFETY: the model is valid, and the callback's data lives until the context is freed.
        let context = unsafe { sys::llama_init_from_model(model.as_ptr(), params) };
        let Some(context) = NonNull::new(context) else {
            // SAFETY: it came from `Box::leak` above, and no context refers to it.
            drop(unsafe { Box::from_raw(taps.as_ptr()) });
            return Err(LlamaCppError::Setup { action: "create a context", reason: take_errors() });
        };
        let (m, c) = (model.as_ptr(), context.as_ptr());
        // Without threads of its own, a context starts new ones for every part of a graph, and taps divide it into
        // three parts. llama.cpp ends the process if the system refuses to start one, here or there.
        // SAFETY: no requirements; it never returns null.
        let threads = unsafe {
            let mut params = sys::ggml_threadpool_params_default(options.threads as i32);
            params.paused = true;
            NonNull::new_unchecked(sys::ggml_threadpool_new(&raw mut params))
        };
        let architecture = metadata(model, "general.architecture").unwrap_or_default();
        let logit_scale = metadata(model, &format!("{architecture}.logit_scale"));
        // SAFETY: model, context and threads are valid.
        unsafe {
            sys::llama_attach_threadpool(c, threads.as_ptr(), threads.as_ptr());
            Ok(Self {
                model,
                context,
                taps,
                threads,
                d_model: sys::llama_model_n_embd(m) as usize,
                vocab: sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(m)) as usize,
                layers: sys::llama_model_n_layer(m) as usize,
                cells: sys::llama_n_ctx(c) as usize,
                cells_of_a_row: sys::llama_n_ctx_seq(c) as usize,
                trained_length,
                window: usize::try_from(sys::llama_model_n_swa(m)).ok().filter(|&n| n > 0),
                logit_scale: logit_scale.and_then(|scale| scale.parse().ok()),
                rests: true,
                batch: sys::llama_n_batch(c) as usize,
                outputs: outputs.min(sys::llama_n_batch(c) as usize),
            })
        }
    }

    /// Whether the model has a KV cache. Encoders and diffusion models have none.
    pub(crate) fn has_cache(&self) -> bool {
        !self.memory().is_null()
    }

    /// Reads at most [`batch`](Self::batch) tokens, at most [`outputs`](Self::outputs) of them outputs. `wanted` names
    /// tensors to copy; they are returned in this order, with one row per token, or one per output where llama.cpp
    /// computes no more. Rows are in the order in which llama.cpp computes them, see `Pass`.
    pub(crate) fn decode(
        &mut self,
        entries: &[Entry],
        wanted: Vec<String>,
    ) -> Result<Vec<Tapped>, LlamaCppError> {
        // llama.cpp reads the arrays of a batch and does not change them; its struct has mutable pointers only.
        let mut tokens: Vec<i32> = entries.iter().map(|entry| entry.token).collect();
        let mut positions: Vec<i32> = entries.iter().map(|entry| entry.position).collect();
        let mut counts = vec![1i32; entries.len()];
        let mut ids: Vec<i32> = entries.iter().map(|entry| entry.sequence).collect();
        let mut lists: Vec<*mut i32> = ids.iter_mut().map(std::ptr::from_mut).collect();
        let mut outputs: Vec<i8> = entries.iter().map(|entry| i8::from(entry.output)).collect();
        let batch = sys::llama_batch {
            n_tokens: entries.len() as i32,
            token: tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: positions.as_mut_ptr(),
            n_seq_id: counts.as_mut_ptr(),
            seq_id: lists.as_mut_ptr(),
            logits: outputs.as_mut_ptr(),
        };
        let empty = |name| Tapped { name, values: Vec::new(), width: 0 };
        let wanted = wanted.into_iter().map(empty).collect();
        take_errors();
        // SAFETY: no other reference to the taps exists outside of a call of the callback, and none is running.
        unsafe { *self.taps.as_ptr() = Taps { wanted, panicked: false } };
        // SAFETY: every array has `n_tokens` entries and outlives the call; the context is borrowed mutably.
        let status = unsafe { sys::llama_decode(self.context.as_ptr(), batch) };
        // SAFETY: context and threads are valid.
        unsafe {
            // Waits for a GPU, after which the callback is not called again.
            sys::llama_synchronize(self.context.as_ptr());
            if self.rests {
                self.rest();
            }
        }
        let nothing = Taps { wanted: Vec::new(), panicked: false };
        // SAFETY: as before the call: `llama_decode` has returned.
        let taps = unsafe { std::mem::replace(&mut *self.taps.as_ptr(), nothing) };
        match status {
            _ if taps.panicked => {
                let reason = "the callback that copies hidden states panicked".to_owned();
                Err(LlamaCppError::Decode { status, reason })
            }
            0 => Ok(taps.wanted),
            1 => Err(LlamaCppError::CacheFull { tokens: entries.len(), cells: self.cells }),
            status => Err(LlamaCppError::Decode { status, reason: take_errors() }),
        }
    }

    /// Puts llama.cpp's threads to sleep until the next pass. Otherwise they wait for it in a busy loop, and the
    /// sampler needs the CPU.
    pub(crate) fn rest(&mut self) {
        // SAFETY: the threads are valid.
        unsafe { sys::ggml_threadpool_pause(self.threads.as_ptr()) };
    }

    /// The logits of the batch's token number `at`, an output of the last [`decode`](Self::decode).
    pub(crate) fn logits(&mut self, at: usize) -> Option<&[f32]> {
        // SAFETY: the context is valid. The pointer is null or that of `vocab` numbers, which stay where they are until
        // the next call that takes `&mut self`.
        unsafe {
            let logits = sys::llama_get_logits_ith(self.context.as_ptr(), at as i32);
            (!logits.is_null()).then(|| slice::from_raw_parts(logits, self.vocab))
        }
    }

    /// Makes sequence `to`, which must be empty, a copy of `from`.
    pub(crate) fn copy(&mut self, from: i32, to: i32) {
        // SAFETY: the ids are below `n_seq_max`. The whole sequence is copied, the only kind that llama.cpp allows
        // between separate buffers.
        unsafe { sys::llama_memory_seq_cp(self.memory(), from, to, -1, -1) };
    }

    /// Drops the tokens of a sequence from position `from` on. Returns whether llama.cpp could.
    pub(crate) fn remove(&mut self, sequence: i32, from: usize) -> bool {
        // SAFETY: the id is below `n_seq_max`.
        unsafe { sys::llama_memory_seq_rm(self.memory(), sequence, from as i32, -1) }
    }

    /// The first position of a sequence that layers with a sliding window still have.
    pub(crate) fn first_position(&self, sequence: i32) -> Option<usize> {
        // SAFETY: the id is below `n_seq_max`. The result is -1 for an empty sequence.
        let position = unsafe { sys::llama_memory_seq_pos_min(self.memory(), sequence) };
        usize::try_from(position).ok()
    }

    fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context is valid.
        unsafe { sys::llama_get_memory(self.context.as_ptr()) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: all four are owned and valid, and are freed in the order of their dependence: the context refers to
        // the others.
        unsafe {
            sys::llama_free(self.context.as_ptr());
            sys::ggml_threadpool_free(self.threads.as_ptr());
            sys::llama_model_free(self.model.as_ptr());
            drop(Box::from_raw(self.taps.as_ptr()));
        }
    }
}

/// llama.cpp's own tokenizer and sampler, which this crate is compared with.
impl Context {
    /// The tokens of a text in which special tokens are recognised, with the model's BOS token if `add_special`.
    /// `None` if llama.cpp has no tokenizer for the model.
    pub(crate) fn tokenize(&self, text: &str, add_special: bool) -> Option<Vec<i32>> {
        // SAFETY: the model is valid.
        let vocab = unsafe { sys::llama_model_get_vocab(self.model.as_ptr()) };
        // SAFETY: as above.
        if unsafe { sys::llama_vocab_type(vocab) } == sys::LLAMA_VOCAB_TYPE_NONE {
            return None;
        }
        let length = i32::try_from(text.len()).ok()?;
        // A text has at most one token per byte, and BOS and EOS.
        let mut tokens = vec![0i32; text.len() + 2];
        let room = i32::try_from(tokens.len()).ok()?;
        // SAFETY: both buffers have the sizes that are passed. The text need not end with 0.
        let count = unsafe {
            let (text, to) = (text.as_ptr().cast(), tokens.as_mut_ptr());
            sys::llama_tokenize(vocab, text, length, to, room, add_special, true)
        };
        tokens.truncate(usize::try_from(count).ok()?);
        Some(tokens)
    }

    /// Samples a token from the logits of the batch's token number `at`, an output of the last
    /// [`decode`](Self::decode). `None` if it is none.
    pub(crate) fn sample(&mut self, chain: &mut Chain, at: usize) -> Option<i32> {
        self.logits(at)?;
        // SAFETY: both are valid, and the position has logits.
        Some(unsafe {
            sys::llama_sampler_sample(chain.0.as_ptr(), self.context.as_ptr(), at as i32)
        })
    }
}

/// A chain of llama.cpp's samplers.
#[derive(Debug)]
pub(crate) struct Chain(NonNull<sys::llama_sampler>);

impl Chain {
    /// The best token if `min_p` is `None`; otherwise a token drawn at temperature 1 after min-p.
    pub(crate) fn new(min_p: Option<f32>, seed: u32) -> Option<Self> {
        // SAFETY: no requirements.
        let chain = unsafe {
            let mut params = sys::llama_sampler_chain_default_params();
            params.no_perf = true;
            NonNull::new(sys::llama_sampler_chain_init(params))?
        };
        // SAFETY: the chain is valid and takes ownership of its samplers.
        unsafe {
            let add = |sampler| sys::llama_sampler_chain_add(chain.as_ptr(), sampler);
            match min_p {
                None => add(sys::llama_sampler_init_greedy()),
                Some(p) => {
                    add(sys::llama_sampler_init_min_p(p, 1));
                    add(sys::llama_sampler_init_temp(1.0));
                    add(sys::llama_sampler_init_dist(seed));
                }
            }
        }
        Some(Self(chain))
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // SAFETY: the chain is owned and valid.
        unsafe { sys::llama_sampler_free(self.0.as_ptr()) };
    }
}

/// The instructions and devices that llama.cpp was built for.
pub(crate) fn system_info() -> String {
    // SAFETY: it returns a static string that ends with 0.
    unsafe { CStr::from_ptr(sys::llama_print_system_info()) }.to_string_lossy().into_owned()
}

/// Refuses a model whose state cannot be copied per sequence, or whose head is not linear.
fn check_model(model: NonNull<sys::llama_model>) -> Result<(), LlamaCppError> {
    let m = model.as_ptr();
    // SAFETY: the model is valid.
    let (encoder, recurrent, hybrid, diffusion, decoder) = unsafe {
        (
            sys::llama_model_has_encoder(m),
            sys::llama_model_is_recurrent(m),
            sys::llama_model_is_hybrid(m),
            sys::llama_model_is_diffusion(m),
            sys::llama_model_has_decoder(m),
        )
    };
    let kinds = [
        (encoder || !decoder, "a model with an encoder"),
        (recurrent, "a recurrent model, whose state cannot drop tokens"),
        (hybrid, "a hybrid model with recurrent layers, whose state cannot drop tokens"),
        (diffusion, "a diffusion model"),
    ];
    if let Some((_, got)) = kinds.iter().find(|(is_so, _)| *is_so) {
        let (expected, got) = ("a decoder with attention only", (*got).to_owned());
        return Err(LlamaCppError::UnsupportedModel { expected, got });
    }
    // SAFETY: the model is valid.
    let (width, output) = unsafe { (sys::llama_model_n_embd(m), sys::llama_model_n_embd_out(m)) };
    if width != output {
        let (expected, got) = ("hidden states of one width", format!("{width} and {output}"));
        return Err(LlamaCppError::UnsupportedModel { expected, got });
    }
    let architecture = metadata(model, "general.architecture").unwrap_or_default();
    let key = format!("{architecture}.final_logit_softcapping");
    // Where the file of a Gemma 2 says nothing of it, llama.cpp takes 30.
    let default = (architecture == "gemma2").then(|| "30 by default".to_owned());
    match metadata(model, &key).or(default) {
        Some(value) if value.parse::<f32>() != Ok(0.0) => {
            let (expected, got) = ("logits without a soft cap", format!("{key} = {value}"));
            Err(LlamaCppError::UnsupportedModel { expected, got })
        }
        _ => Ok(()),
    }
}

/// A value of the model's metadata, as text.
fn metadata(model: NonNull<sys::llama_model>, key: &str) -> Option<String> {
    let key = CString::new(key).ok()?;
    let mut text = [0u8; 128];
    // SAFETY: the key ends with 0, and the buffer has the size that is passed; llama.cpp writes no more than that.
    let length = unsafe {
        let to = text.as_mut_ptr().cast::<c_char>();
        sys::llama_model_meta_val_str(model.as_ptr(), key.as_ptr(), to, text.len())
    };
    if length < 0 {
        return None;
    }
    Some(CStr::from_bytes_until_nul(&text).ok()?.to_string_lossy().into_owned())
}
