//! A model with what it needs to read and write text.

use std::{path::Path, sync::Once};

use burn::tensor::Device;
use esamp::{
    TokenId,
    llama::{ChatMessage, ChatTemplate, Llama, LoadError, Tokenizer},
};

use crate::{
    device::DeviceName,
    failure::{Failure, note},
    weights::{WeightsArg, megabytes},
};

/// A model's tokenizer and chat template.
pub struct Texts {
    pub tokenizer: Tokenizer,
    /// An error in the template is reported when it is needed: a prompt that is completed as it is needs none.
    pub template: Result<Option<ChatTemplate>, LoadError>,
    no_template: Once,
}

impl Texts {
    /// Reads them from a GGUF file or a Hugging Face folder, and prints what is unusual about the tokenizer.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let tokenizer = tokenizer(path)?;
        let template = if path.is_dir() {
            ChatTemplate::from_hf_folder(path)
        } else {
            ChatTemplate::from_gguf(path)
        };
        for warning in tokenizer.warnings() {
            note(warning);
        }
        Ok(Self { tokenizer, template, no_template: Once::new() })
    }

    /// Encodes a message to the model with its chat template. Without one, the message is completed as it is, which is
    /// said once. `next_step` is what the user can do about a template that fails.
    pub fn encode_message(&self, text: &str, next_step: &str) -> Result<Vec<TokenId>, Failure> {
        let tokens = match &self.template {
            Ok(Some(template)) => template
                .render(&[ChatMessage::user(text)])
                .and_then(|text| self.tokenizer.encode_rendered(&text)),
            Ok(None) => {
                self.no_template.call_once(|| {
                    note("the model has no chat template: prompts are completed as they are");
                });
                self.tokenizer.encode(text)
            }
            Err(error) => return Err(Failure::runtime(error, next_step)),
        };
        tokens.map_err(|error| Failure::runtime(error, next_step))
    }
}

/// Opens only the tokenizer of a GGUF file or a Hugging Face folder.
pub fn tokenizer(path: &Path) -> Result<Tokenizer, Failure> {
    let opened =
        if path.is_dir() { Tokenizer::from_hf_folder(path) } else { Tokenizer::from_gguf(path) };
    opened.map_err(Failure::loading)
}

/// The flags about where a burn model is and how it is kept there.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Place {
    /// The device to compute on.
    #[arg(long, value_enum, default_value_t = DeviceName::Flex)]
    pub device: DeviceName,
    #[command(flatten)]
    pub weights: WeightsArg,
}

impl Place {
    /// Opens the device.
    pub fn open(&self) -> Result<Device, Failure> {
        self.weights.check_device(&self.device.name())?;
        self.device.open()
    }

    /// Opens a burn model of the Llama family from a GGUF file or a Hugging Face folder on `device`, and prints the size
    /// of its matrices and what is unusual about it.
    pub fn llama(&self, path: &Path, device: &Device) -> Result<Llama, Failure> {
        self.weights.check_path(path)?;
        let model = if path.is_dir() {
            Llama::from_hf_folder(path, device)
        } else {
            Llama::from_gguf(path, device)
        };
        let model = self.weights.apply(model.map_err(Failure::loading)?)?;
        for warning in model.warnings() {
            note(warning);
        }
        note(&format!("the matrices of the model take {}", megabytes(model.weight_bytes())));
        Ok(model)
    }
}
