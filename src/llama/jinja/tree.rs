//! The syntax tree of a template.

use std::sync::Arc;

/// A name of a variable, attribute, filter or test.
pub(super) type Name = Arc<str>;

pub(super) type Block = Vec<Node>;

/// A statement and the line where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) statement: Statement,
}

#[derive(Debug)]
pub(super) enum Statement {
    Text(String),
    Print(Expression),
    If { branches: Vec<(Expression, Block)>, otherwise: Block },
    For(Arc<For>),
    Set(Target, Expression),
    SetBlock { target: Target, filters: Vec<Step>, body: Block },
    Macro(Arc<Macro>),
    Call { call: Expression, caller: Arc<Macro> },
    Filter { filters: Vec<Step>, body: Block },
    With { values: Vec<(Target, Expression)>, body: Block },
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) items: Expression,
    pub(super) condition: Option<Expression>,
    pub(super) recursive: bool,
    pub(super) body: Block,
    pub(super) otherwise: Block,
}

#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Name,
    /// Parameters with their default values.
    pub(super) parameters: Vec<(Name, Option<Expression>)>,
    pub(super) body: Block,
}

/// What an assignment assigns to.
#[derive(Debug)]
pub(super) enum Target {
    Name(Name),
    /// An attribute of a namespace.
    Attribute(Name, Name),
    Several(Vec<Target>),
}

/// An expression. Chains of operators and of postfix steps are vectors and not nested boxes, so that the depth of the
/// tree is the number of brackets around an expression, which the parser limits.
#[derive(Debug)]
pub(super) enum Expression {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Arc<str>),
    Name(Name),
    List(Vec<Expression>),
    Tuple(Vec<Expression>),
    Dict(Vec<(Expression, Expression)>),
    Steps(Box<Expression>, Vec<Step>),
    Not(Box<Expression>),
    Negative(Box<Expression>),
    And(Vec<Expression>),
    Or(Vec<Expression>),
    /// Operators of one precedence, from left to right.
    Chain(Box<Expression>, Vec<(Operator, Expression)>),
    Compare(Box<Expression>, Vec<(Comparison, Expression)>),
    If(Box<Conditional>),
}

#[derive(Debug)]
pub(super) struct Conditional {
    pub(super) condition: Expression,
    pub(super) then: Expression,
    pub(super) otherwise: Option<Expression>,
}

/// What follows an operand.
#[derive(Debug)]
pub(super) enum Step {
    Attribute(Name),
    Item(Expression),
    Slice([Option<Box<Expression>>; 3]),
    Call(Arguments),
    Method(Name, Arguments),
    Filter(Name, Arguments),
    Test { name: Name, negated: bool, arguments: Arguments },
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expression>,
    pub(super) named: Vec<(Name, Expression)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Remainder,
    Power,
    Concatenate,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}
