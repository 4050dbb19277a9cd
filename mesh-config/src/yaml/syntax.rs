//! What the parser of YAML says of a syntax error, with what a person would rather have written.

use super::At;

/// The parser's words → what was expected. The first that fits.
const EXPECTED: &[(&str, &str)] = &[
    ("tab", "spaces"),
    ("scanning an anchor or alias", "quotes where the sign itself is meant: \"*\""),
    ("unknown anchor", "one that stands before in the same document, or quotes where no alias is meant"),
    ("mapping values are not allowed", "one \":\" behind each key, and quotes around text that has one"),
    ("unknown escape", "\\\\ for a backslash, or single quotes"),
    ("quoted scalar, found unexpected end", "the quote that ends the text"),
    ("block mapping", "each key of a map in the same column"),
    ("block collection", "each item of a list in the same column"),
];

/// The message. `inside` is where the innermost list or map begins that is open.
pub(super) fn message(said: &str, inside: Option<At>) -> String {
    let expected = EXPECTED.iter().find(|(words, _)| said.contains(words)).map(|(_, expected)| *expected);
    match (expected, inside) {
        (Some(expected), _) => format!("not YAML: {said}, expected {expected}"),
        (None, Some(At { line, column })) if said.contains("flow") => {
            format!("not YAML: {said}, expected the end of what begins at {line}:{column}")
        }
        (None, _) => format!("not YAML: {said}, expected well-formed YAML 1.2"),
    }
}
