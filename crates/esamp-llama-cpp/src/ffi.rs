//! Everything that calls C. The rest of the crate is safe Rust on top of [`Context`].
//!
//! A [`Context`] owns a model, a llama.cpp context and the place where the callback stores hidden states. All of its
//! calls that change the context take `&mut self`, so the borrow checker serialises them; sharing it between threads
//! is left to a mutex.
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
    /// Whether logits and the deep state of this position are wanted.
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
pub(crate) struct Context {
    model: NonNull<sys::llama_model>,
    context: NonNull<sys::llama_context>,
    taps: NonNull<Taps>,
    pub(crate) d_model: usize,
    pub(crate) vocab: usize,
    pub(crate) layers: usize,
    /// Cells of the whole cache, and of one sequence.
    pub(crate) cells: usize,
    pub(crate) cells_of_a_row: usize,
    pub(crate) batch: usize,
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
        // Hidden states are f32. Anything else stays unrecorded, which `decode` reports.
        if tensor_ref.type_ == sys::GGML_TYPE_F32 {
            let [width, rows] = [tensor_ref.ne[0] as usize, tensor_ref.ne[1] as usize];
            let from = place.values.len();
            place.width = width;
            place.values.resize(from + width * rows, 0.0);
            // SAFETY: the tensor is contiguous and has width·rows numbers of 4 bytes, for which there is room behind
            // `from`.
            unsafe {
                let to = place.values.as_mut_ptr().add(from).cast::<c_void>();
                sys::ggml_backend_tensor_get(tensor, to, 0, width * rows * size_of::<f32>());
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
    /// Loads a model and creates its context.
    pub(crate) fn load(path: &Path, options: &Options) -> Result<Self, LlamaCppError> {
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
        let loaded = check_model(model).and_then(|()| Self::with_model(model, options));
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
    ) -> Result<Self, LlamaCppError> {
        let taps = Box::new(Taps { wanted: Vec::new(), panicked: false });
        let taps = NonNull::from(Box::leak(taps));
        // SAFETY: no requirements.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = options.cells as u32;
        params.n_batch = options.batch as u32;
        params.n_ubatch = options.batch as u32;
        params.n_seq_max = options.max_rows as u32;
        params.n_threads = options.threads as i32;
        params.n_threads_batch = options.threads as i32;
        params.kv_unified = options.unified_cache;
        // The deep states: with pooling off, an "embedding" is the head's input at a position.
        params.embeddings = true;
        params.pooling_type = sys::LLAMA_POOLING_TYPE_NONE;
        params.cb_eval = Some(tap);
        params.cb_eval_user_data = taps.as_ptr().cast();
        // SAFETY: the model is valid, and the callback's data lives until the context is freed.
        let context = unsafe { sys::llama_init_from_model(model.as_ptr(), params) };
        let Some(context) = NonNull::new(context) else {
            // SAFETY: it came from `Box::leak` above, and no context refers to it.
            drop(unsafe { Box::from_raw(taps.as_ptr()) });
            return Err(LlamaCppError::Setup { action: "create a context", reason: take_errors() });
        };
        let (m, c) = (model.as_ptr(), context.as_ptr());
        // SAFETY: model and context are valid.
        unsafe {
            Ok(Self {
                model,
                context,
                taps,
                d_model: sys::llama_model_n_embd(m) as usize,
                vocab: sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(m)) as usize,
                layers: sys::llama_model_n_layer(m) as usize,
                cells: sys::llama_n_ctx(c) as usize,
                cells_of_a_row: sys::llama_n_ctx_seq(c) as usize,
                batch: sys::llama_n_batch(c) as usize,
            })
        }
    }

    /// Reads at most [`batch`](Self::batch) tokens. `wanted` names tensors to copy; they are returned in this order,
    /// with one row per token, or one per output where llama.cpp computes no more. With `head_input`, every token must
    /// be an output or llama.cpp makes it one, at the cost of its logits.
    pub(crate) fn decode(
        &mut self,
        entries: &[Entry],
        wanted: Vec<String>,
        head_input: bool,
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
        // SAFETY: the context is valid.
        unsafe { sys::llama_set_embeddings(self.context.as_ptr(), head_input) };
        // SAFETY: every array has `n_tokens` entries and outlives the call; the context is borrowed mutably.
        let status = unsafe { sys::llama_decode(self.context.as_ptr(), batch) };
        // Waits for a GPU, after which the callback is not called again.
        // SAFETY: the context is valid.
        unsafe { sys::llama_synchronize(self.context.as_ptr()) };
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

    /// The logits of the batch's token number `at`, an output of the last [`decode`](Self::decode).
    pub(crate) fn logits(&self, at: usize) -> Option<&[f32]> {
        // SAFETY: the context is valid. The pointer is null or that of `vocab` numbers, which stay until the next
        // decode; that needs `&mut self`, so the slice does not outlive them.
        unsafe {
            let logits = sys::llama_get_logits_ith(self.context.as_ptr(), at as i32);
            (!logits.is_null()).then(|| slice::from_raw_parts(logits, self.vocab))
        }
    }

    /// The head's input at the batch's token number `at`, an output of the last [`decode`](Self::decode).
    pub(crate) fn head_input(&self, at: usize) -> Option<&[f32]> {
        // SAFETY: as for `logits`, with `d_model` numbers: `check_model` refuses models with another width.
        unsafe {
            let state = sys::llama_get_embeddings_ith(self.context.as_ptr(), at as i32);
            (!state.is_null()).then(|| slice::from_raw_parts(state, self.d_model))
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

    fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context is valid.
        unsafe { sys::llama_get_memory(self.context.as_ptr()) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: all three are owned and valid, and are freed in the order of their dependence: the context refers to
        // the model and to the taps.
        unsafe {
            sys::llama_free(self.context.as_ptr());
            sys::llama_model_free(self.model.as_ptr());
            drop(Box::from_raw(self.taps.as_ptr()));
        }
    }
}

/// Refuses a model whose state cannot be copied per sequence, or whose head is not `W·x` alone.
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
    for (key, neutral) in [("final_logit_softcapping", 0.0), ("logit_scale", 1.0)] {
        let key = format!("{architecture}.{key}");
        if let Some(value) = metadata(model, &key)
            && value.parse::<f32>() != Ok(neutral)
        {
            let (expected, got) = ("logits that are W·x alone", format!("{key} = {value}"));
            return Err(LlamaCppError::UnsupportedModel { expected, got });
        }
    }
    Ok(())
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
