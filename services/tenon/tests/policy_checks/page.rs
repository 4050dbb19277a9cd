//! `docs/policy-checks.md` as tests read it.

use std::{fs, path::Path};

use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto};

pub struct Page {
    /// The folder that the examples stand beside.
    pub base: String,
    pub sections: Vec<Section>,
}

/// A section on one check.
pub struct Section {
    pub id: String,
    pub name: String,
    pub text: String,
    pub yaml: String,
    /// What stands after `tenon policy check -f DIR`.
    pub args: Vec<String>,
}

impl Page {
    pub fn read() -> Self {
        let text = include_str!("../../../../docs/policy-checks.md");
        let mut parts = text.split("\n## ");
        let base = parts.find_map(|part| block(part, "yaml")).unwrap();
        Self { base, sections: parts.map(Section::read).collect() }
    }
}

impl Section {
    fn read(text: &str) -> Self {
        let (id, name) = text.lines().next().unwrap().split_once(' ').unwrap();
        let console = block(text, "console").unwrap_or_default();
        let args = console.trim().strip_prefix("$ tenon policy check -f DIR ").unwrap_or_default();
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
            text: text.to_owned(),
            yaml: block(text, "yaml").unwrap_or_default(),
            args: args.split_whitespace().map(str::to_owned).collect(),
        }
    }

    /// The example as files: the policy in a folder of its own.
    pub fn lay_out(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy");
        fs::create_dir(&policy).unwrap();
        if !self.yaml.contains("kind: Mesh\n") {
            fs::write(policy.join("base.yaml"), Page::read().base).unwrap();
        }
        fs::write(policy.join("example.yaml"), &self.yaml).unwrap();
        if let Some(flows) = block(&self.text, "json") {
            fs::write(dir.path().join("flows.json"), flows).unwrap();
        }
        if let Some(proto) = block(&self.text, "proto") {
            fs::write(dir.path().join("media.binpb"), descriptors(&proto).encode_to_vec()).unwrap();
        }
        dir
    }

    /// The arguments with the files as they lie in the folder.
    pub fn beside(&self, dir: &Path, args: &[&str]) -> Vec<String> {
        let file = |arg: &&str| match arg.ends_with(".json") || arg.ends_with(".binpb") {
            true => dir.join(arg).display().to_string(),
            false => (*arg).to_owned(),
        };
        args.iter().map(file).collect()
    }
}

/// The first fenced block of a language.
fn block(text: &str, language: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("```{language}\n"))?;
    Some(rest.split_once("```")?.0.to_owned())
}

/// As much of a `.proto` file as the page needs: a package, services, methods.
pub fn descriptors(proto: &str) -> FileDescriptorSet {
    let mut file = FileDescriptorProto { name: Some("media.proto".into()), ..Default::default() };
    for line in proto.lines().map(str::trim) {
        match line.split_once(' ') {
            Some(("package", name)) => file.package = Some(name.trim_end_matches(';').to_owned()),
            Some(("service", name)) => {
                let name = Some(name.trim_end_matches(" {").to_owned());
                file.service.push(ServiceDescriptorProto { name, ..Default::default() });
            }
            Some(("rpc", rest)) => {
                let name = Some(rest.split('(').next().unwrap().to_owned());
                let method = MethodDescriptorProto { name, ..Default::default() };
                file.service.last_mut().unwrap().method.push(method);
            }
            _ => {}
        }
    }
    FileDescriptorSet { file: vec![file] }
}
