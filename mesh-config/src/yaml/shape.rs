//! What may stand in the maps of a file: [`Reader`](super::Reader) takes these fields and no others, and the schema for
//! editors is made of the same tables.

/// A map of fields.
#[derive(Debug)]
pub struct Map {
    /// What it is, in messages: "a rule".
    pub what: &'static str,
    /// Each of them once.
    pub fields: &'static [Field],
}

/// A field of a map.
#[derive(Debug)]
pub struct Field {
    /// As it stands in files.
    pub name: &'static str,
    /// Whether it must be there.
    pub required: bool,
    /// What stands in it.
    pub form: Form,
    /// For the person who writes it: a sentence or two.
    pub says: &'static str,
}

/// What stands in a field, as far as its shape goes. Never narrower than what the parser takes.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// Any text.
    Text,
    /// Text in which this regular expression (ECMA-262) finds something.
    Like(&'static str),
    /// One of these words.
    Choice(fn() -> Vec<&'static str>),
    /// `true` or `false`.
    Boolean,
    /// A whole number of at least this.
    Number(u64),
    /// A whole number from the first to the second.
    Between(u64, u64),
    /// Any number from the first to the second.
    Decimal(f64, f64),
    /// A list, maybe an empty one.
    List(&'static Form),
    /// A list with something in it.
    Some(&'static Form),
    /// A list with something in it and nothing twice.
    Set(&'static Form),
    /// A map of these fields.
    Map(&'static Map),
    /// A map of these fields with something in it.
    SomeMap(&'static Map),
    /// A map of names that are the user's.
    Names(&'static Form),
    /// A map with something in it of names that are the user's, and have this form.
    SomeNames(&'static Form, &'static Form),
    /// One of these.
    Either(&'static [Form]),
}

impl Map {
    /// The names of its fields.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.fields.iter().map(|field| field.name)
    }
}

/// A field that must be there.
pub(crate) const fn required(name: &'static str, form: Form, says: &'static str) -> Field {
    Field { name, required: true, form, says }
}

/// A field that may be absent.
pub(crate) const fn optional(name: &'static str, form: Form, says: &'static str) -> Field {
    Field { name, required: false, form, says }
}

/// The words of a table of choices.
pub(crate) fn words<T>(choices: &[(&'static str, T)]) -> Vec<&'static str> {
    choices.iter().map(|(word, _)| *word).collect()
}
