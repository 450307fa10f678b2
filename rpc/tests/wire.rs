//! Our descriptors say exactly what `mayastor_v1.txt` says: that file is the published API, one fact a line,
//! and changes only when that API does.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
};

const PACKAGE: &str = ".mayastor.v1.";

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(rpc::FILE_DESCRIPTOR_SET).expect("the build script wrote it")
}

/// Every fact of a file, in the words of the fixture.
fn facts(file: &FileDescriptorProto) -> Vec<String> {
    let mut out = vec![format!("file {}", file.name())];
    for service in &file.service {
        for rpc in &service.method {
            let path = format!("/{}.{}/{}", file.package(), service.name(), rpc.name());
            assert!(!rpc.client_streaming(), "{path} streams");
            let (input, output) = (short(rpc.input_type()), short(rpc.output_type()));
            let stream = if rpc.server_streaming() { "stream " } else { "" };
            out.push(format!("rpc {path} {input} -> {stream}{output}"));
        }
    }
    file.enum_type.iter().for_each(|e| enum_facts("", e, &mut out));
    for message in &file.message_type {
        message_facts("", message, &mut out);
    }
    out
}

fn enum_facts(outer: &str, e: &EnumDescriptorProto, out: &mut Vec<String>) {
    let values: Vec<String> = e.value.iter().map(|v| format!("{}={}", v.name(), v.number())).collect();
    out.push(format!("enum {outer}{}: {}", e.name(), values.join(" ")));
}

fn message_facts(outer: &str, message: &DescriptorProto, out: &mut Vec<String>) {
    let name = format!("{outer}{}", message.name());
    for field in &message.field {
        let fact = format!(
            "field {name} {} {} {} {}",
            field.number(),
            field.name(),
            kind(field),
            label(message, field)
        );
        out.push(fact.trim_end().to_owned());
    }
    message.enum_type.iter().for_each(|e| enum_facts(&format!("{name}."), e, out));
    for nested in &message.nested_type {
        message_facts(&format!("{name}."), nested, out);
    }
}

fn kind(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => short(field.type_name()),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn label(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    match (field.label(), field.oneof_index) {
        (Label::Repeated, _) => "repeated".to_owned(),
        _ if field.proto3_optional() => "optional".to_owned(),
        (_, Some(index)) => format!("oneof {}", message.oneof_decl[index as usize].name()),
        _ => String::new(),
    }
}

fn short(name: &str) -> String {
    name.strip_prefix(PACKAGE).unwrap_or(name.trim_start_matches('.')).to_owned()
}

#[test]
fn numbers_names_and_labels_are_those_of_the_published_api() {
    let want: BTreeSet<String> = include_str!("mayastor_v1.txt").lines().map(str::to_owned).collect();
    let set = descriptors();
    let ours = set.file.iter().filter(|f| f.package() == "mayastor.v1");
    let got: BTreeSet<String> = ours.flat_map(facts).collect();
    let missing: Vec<_> = want.difference(&got).collect();
    let extra: Vec<_> = got.difference(&want).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nnot in the API: {extra:#?}");
}

#[test]
fn everything_that_reflection_needs_is_there() {
    let set = descriptors();
    let names: BTreeSet<&str> = set.file.iter().map(FileDescriptorProto::name).collect();
    for file in &set.file {
        assert_eq!(file.syntax(), "proto3", "{}", file.name());
        for import in &file.dependency {
            assert!(names.contains(import.as_str()), "{} imports {import}", file.name());
        }
    }
    let packages: BTreeSet<&str> = set.file.iter().map(FileDescriptorProto::package).collect();
    assert_eq!(packages, BTreeSet::from(["google.protobuf", "keelson.v1", "mayastor.v1"]));
}

#[test]
fn ana_states_have_the_numbers_of_the_nvme_specification() {
    use rpc::keelson::v1::AnaState;
    // NVMe Base 2.0, Asymmetric Namespace Access log page, ANA group descriptor.
    assert_eq!(AnaState::Optimized as i32, 1);
    assert_eq!(AnaState::NonOptimized as i32, 2);
    assert_eq!(AnaState::Inaccessible as i32, 3);
    assert_eq!(AnaState::PersistentLoss as i32, 4);
    assert_eq!(AnaState::Change as i32, 15);
}
