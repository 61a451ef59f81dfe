/* The inside of the interpreter, shared by jinja*.c only: the tree of a parsed template, values,
 * and the state of one rendering. */
#ifndef ENGINE_JINJA_PARTS_H
#define ENGINE_JINJA_PARTS_H

#include "base/arena.h"
#include "engine/tokens/jinja.h"

/* ---- values ---- */

enum jinja_kind {
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_TEXT,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_RANGE,
    JINJA_VIEW,   /* of a dict: items(), keys(), values() */
    JINJA_STREAM, /* a Python generator: it can be read once */
    JINJA_DICT,
    JINJA_NAMESPACE,
    JINJA_LOOP,
    JINJA_MACRO,
    JINJA_FUNCTION, /* a global function */
    JINJA_METHOD,   /* a method with its object */
};

struct jinja_list;
struct jinja_dict;
struct jinja_loop;
struct jinja_macro;
struct jinja_method;

/* Small and copied. Everything that it points to lives as long as the rendering, or as the parsed
 * template. */
struct jinja_value {
    uint8_t kind; /* enum jinja_kind */
    bool safe;    /* text marked by `safe` or `escape`; it may only be printed */
    uint8_t of;   /* undefined: kind of the object without this member, or JINJA_UNDEFINED */
    union {
        bool truth;
        int64_t whole;
        double real;
        struct {
            const char *data; /* UTF-8; undefined: the name that was looked up */
            size_t size;
        } text;
        struct jinja_list *list; /* list, tuple, range, view, stream */
        struct jinja_dict *dict; /* dict, namespace */
        struct jinja_loop *loop;
        const struct jinja_macro *macro;
        const struct jinja_method *method;
        const struct jinja_function *function;
    };
};

struct jinja_list {
    struct jinja_value *item; /* (count) */
    size_t count, capacity;
    size_t depth;      /* of lists and dicts inside, bounded because they are visited recursively */
    size_t next;       /* stream: items that were read */
    int64_t from, by;  /* range: the first number and the step */
    const char *label; /* view: "dict_items", ... */
};

struct jinja_entry {
    struct jinja_value key, value;
};
struct jinja_dict {
    struct jinja_entry *entry; /* (count), in order of insertion, as in Python */
    size_t count, capacity, depth;
};

/* ---- the tree ---- */

/* Members of struct jinja_node that a kind uses are named behind it. */
enum jinja_node_kind {
    /* expressions */
    NODE_CONST,     /* value */
    NODE_NAME,      /* name */
    NODE_LIST,      /* a: items */
    NODE_TUPLE,     /* a: items */
    NODE_DICT,      /* a: key, value, key, value, ... */
    NODE_ATTRIBUTE, /* a.name */
    NODE_ITEM,      /* a[b] */
    NODE_SLICE,     /* a:b:c, only as b of NODE_ITEM; each may be NULL */
    NODE_CALL,      /* a(b) */
    NODE_FILTER,    /* a | name(b); a is NULL in {% filter %} and {% set %} */
    NODE_TEST,      /* a is name(b) */
    NODE_KEYWORD,   /* name=a, only in arguments */
    NODE_NOT,       /* a */
    NODE_NEGATIVE,  /* a */
    NODE_POSITIVE,  /* a */
    NODE_AND,       /* a, b */
    NODE_OR,        /* a, b */
    NODE_BINARY,    /* op, a, b */
    NODE_CONCAT,    /* a: operands of ~ */
    NODE_COMPARE,   /* a; b: list of NODE_OPERAND */
    NODE_OPERAND,   /* op, a */
    NODE_CHOICE,    /* b if a else c; c may be NULL */
    /* statements */
    NODE_DATA,         /* value */
    NODE_PRINT,        /* a */
    NODE_FOR,          /* a: target, b: iterable, c: filter or NULL, body, other */
    NODE_IF,           /* a, body, other */
    NODE_SET,          /* a: target, b */
    NODE_SET_BLOCK,    /* a: target, b: filter or NULL, body */
    NODE_MEMBER,       /* target name.value of a namespace */
    NODE_MACRO,        /* name, a: list of NODE_PARAMETER, body */
    NODE_PARAMETER,    /* name, a: default or NULL */
    NODE_CALL_BLOCK,   /* a: list of NODE_PARAMETER, b: NODE_CALL, body */
    NODE_FILTER_BLOCK, /* b: filter, body */
    NODE_WITH,         /* a: targets, b: values, body */
    NODE_GENERATION,   /* body */
    NODE_BREAK,
    NODE_CONTINUE,
};

enum jinja_op {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOORDIV,
    OP_MOD,
    OP_POW,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN,
};

struct jinja_node {
    uint8_t kind; /* enum jinja_node_kind */
    uint8_t op;   /* enum jinja_op */
    bool uses;    /* for: the body uses `loop`; macro, call block: the body uses `caller`;
                     attribute: a Python type has a method of this name */
    uint16_t depth;
    uint32_t line;
    uint32_t name;           /* index in struct jinja.name */
    struct jinja_node *next; /* in a list */
    struct jinja_node *a, *b, *c, *body, *other;
    struct jinja_value value;
    const void *row; /* filter and test: its row in the table of jinja_filter.c, jinja_test.c */
};

struct jinja_name {
    const char *text;
    size_t size;
    uint32_t uses; /* NODE_NAME nodes that read it */
    bool stored;   /* assigned somewhere in the template */
};

struct jinja {
    struct arena arena;
    struct jinja_name *name;
    uint32_t names, name_capacity;
    struct jinja_node *body;
    bool generation;
};

/* ---- a rendering ---- */

struct jinja_binding {
    uint32_t name;
    struct jinja_value value;
    struct jinja_binding *next;
};
struct jinja_scope {
    const struct jinja_scope *parent;
    struct jinja_binding *first;
};

struct jinja_loop {
    struct jinja_list *items;
    size_t index;
};

struct jinja_macro {
    const struct jinja_node *node; /* NODE_MACRO or NODE_CALL_BLOCK */
    const struct jinja_scope *scope;
};

struct jinja_run;

/* Arguments of a call, filter or test. Those without a name come first. */
enum { JINJA_ARGUMENTS = 16 };
struct jinja_argument {
    uint32_t name; /* JINJA_NO_NAME: given by position */
    struct jinja_value value;
};
#define JINJA_NO_NAME UINT32_MAX
struct jinja_call {
    struct jinja_argument argument[JINJA_ARGUMENTS];
    size_t count;
    const char *what; /* the function's name, for errors */
};

struct jinja_function {
    const char *name;
    err (*call)(struct jinja_value *out, struct jinja_run *r, const struct jinja_call *call);
};
/* A row of the table of methods. */
struct jinja_method_row {
    const char *name;
    uint32_t kinds; /* bits 1 << enum jinja_kind */
    err (*call)(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *self,
                const struct jinja_call *call); /* NULL: Python has it, and it is refused here */
};
struct jinja_method {
    struct jinja_value self;
    const struct jinja_method_row *row;
};
struct jinja_filter_row {
    const char *name;
    err (*call)(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *value,
                const struct jinja_call *call); /* NULL: jinja2 has it, and it is refused here */
    bool safe;                                  /* accepts text marked by safe or escape */
};
struct jinja_test_row {
    const char *name;
    err (*call)(bool *out, struct jinja_run *r, const struct jinja_value *value,
                const struct jinja_call *call);
};

enum jinja_flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };

struct jinja_block;
struct jinja_run {
    const struct jinja *program;
    struct bytes *out; /* the text, and above it what is being captured */
    struct jinja_spans *spans;
    struct jinja_block *block; /* memory of the rendering, the newest first */
    size_t memory;
    uint64_t *steps;
    uint64_t own_steps;
    uint32_t depth, captures, line;
    enum jinja_flow flow;
    int64_t now;
};

/* jinja_make.c: memory, and making values. */
err jinja_take(void *out /* T ** */, struct jinja_run *r, size_t count, size_t size);
void jinja_free(struct jinja_run *r);
err jinja_step(struct jinja_run *r, uint64_t steps); /* ERR_LIMIT when they are used up */
struct jinja_value jinja_bool(bool truth);
struct jinja_value jinja_int(int64_t whole);
struct jinja_value jinja_float(double real);
struct jinja_value jinja_text(const char *data, size_t size); /* borrows */
struct jinja_value jinja_word(const char *text);              /* the same, zero-terminated */
err jinja_text_copy(struct jinja_value *out, struct jinja_run *r, const char *data, size_t size);
err jinja_list(struct jinja_value *out, struct jinja_run *r, enum jinja_kind kind, size_t room);
err jinja_push(struct jinja_run *r, const struct jinja_value *list, const struct jinja_value *item);
err jinja_dict(struct jinja_value *out, struct jinja_run *r, size_t room);
err jinja_put(struct jinja_run *r, const struct jinja_value *dict, const struct jinja_value *key,
              const struct jinja_value *value);
struct jinja_value *jinja_find(const struct jinja_dict *dict, const char *key, size_t size);
err jinja_get(struct jinja_value **out, struct jinja_run *r, const struct jinja_value *dict,
              const struct jinja_value *key); /* *out: NULL if absent */
err jinja_import(struct jinja_value *out, struct jinja_run *r, const json_t *json);
/* ERR_INPUT "line N: ..." for the line being run. */
err jinja_fail(const struct jinja_run *r, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* jinja_value.c: Python's rules. */
const char *jinja_type(const struct jinja_value *v); /* "str", "dict object", ... as in errors */
err jinja_undefined(const struct jinja_run *r, const struct jinja_value *v); /* its error */
bool jinja_is_list(const struct jinja_value *v); /* anything with items in `list` */
bool jinja_is_number(const struct jinja_value *v);
double jinja_real(const struct jinja_value *v);
int64_t jinja_whole(const struct jinja_value *v); /* of a whole number or a bool */
err jinja_equal(bool *out, struct jinja_run *r, const struct jinja_value *a,
                const struct jinja_value *b);
/* < 0, 0, > 0; an error if Python cannot order them. */
err jinja_order(int *out, struct jinja_run *r, const struct jinja_value *a,
                const struct jinja_value *b);
err jinja_truth(bool *out, struct jinja_run *r, const struct jinja_value *v);
/* The items that a loop over `v` sees; a stream is empty afterwards. */
err jinja_items(struct jinja_list **out, struct jinja_run *r, const struct jinja_value *v);
err jinja_length(size_t *out, struct jinja_run *r, const struct jinja_value *v);
err jinja_contains(bool *out, struct jinja_run *r, const struct jinja_value *container,
                   const struct jinja_value *item);

/* jinja_text.c: Python's texts of values. */
err jinja_print(struct jinja_run *r, const struct jinja_value *v); /* str(), appended to r->out */
err jinja_str(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *v);
struct jinja_json {
    bool ascii, sort;
    const char *indent; /* NULL: on one line */
    struct jinja_value item_separator, key_separator;
};
err jinja_print_json(struct jinja_run *r, const struct jinja_value *v, const struct jinja_json *how,
                     size_t level);
void jinja_float_text(char out[40], double value);
size_t jinja_characters(const char *data, size_t size); /* code points */
/* The byte offset of the code point `at`, at most `size`. */
size_t jinja_offset(const char *data, size_t size, size_t at);
bool jinja_space(uint32_t c); /* str.isspace() of Python */
/* Everything appended to r->out after *begin = jinja_capture(r) becomes a text. */
size_t jinja_capture(struct jinja_run *r);
err jinja_captured(struct jinja_value *out, struct jinja_run *r, size_t begin);
err jinja_say(struct jinja_run *r, const char *data, size_t size);

/* jinja_op.c: operators, members and slices. */
err jinja_binary(struct jinja_value *out, struct jinja_run *r, enum jinja_op op,
                 const struct jinja_value *a, const struct jinja_value *b);
err jinja_compare(bool *out, struct jinja_run *r, enum jinja_op op, const struct jinja_value *a,
                  const struct jinja_value *b);
err jinja_attribute(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *object,
                    const char *name, size_t size);
err jinja_item(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *object,
               const struct jinja_value *key);
/* bound: start, stop, step; each may be none. */
err jinja_slice(struct jinja_value *out, struct jinja_run *r, const struct jinja_value *object,
                const struct jinja_value bound[3]);

/* jinja_method.c, jinja_filter.c, jinja_test.c, jinja_function.c: tables. */
const struct jinja_method_row *jinja_method_find(const char *name, size_t size, uint8_t kind);
const struct jinja_filter_row *jinja_filter_find(const char *name);
const struct jinja_test_row *jinja_test_find(const char *name);
const struct jinja_function *jinja_function_find(const char *name);
err jinja_filter_call(struct jinja_value *out, struct jinja_run *r,
                      const struct jinja_filter_row *row, const struct jinja_value *value,
                      const struct jinja_call *call);
/* The argument `name` of a call, or the one at `position`; NULL: not given. */
const struct jinja_value *jinja_given(const struct jinja_run *r, const struct jinja_call *call,
                                      size_t position, const char *name);
/* The same; NULL also if it is none. */
const struct jinja_value *jinja_given_some(const struct jinja_run *r, const struct jinja_call *call,
                                           size_t position, const char *name);
/* Whether the argument is true; false if it is not given. */
err jinja_flag(bool *out, struct jinja_run *r, const struct jinja_call *call, size_t position,
               const char *name);
/* ERR_INPUT for an argument beyond `most`, or with a name not in `names`, which ends with NULL.
 * NULL: no argument has a name. */
err jinja_check(const struct jinja_run *r, const struct jinja_call *call, size_t most,
                const char *const *names);

/* jinja_read.c, jinja_lex.c */
enum jinja_token_kind {
    TOKEN_END,
    TOKEN_DATA,
    TOKEN_PRINT_BEGIN,
    TOKEN_PRINT_END,
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_NAME,
    TOKEN_TEXT,
    TOKEN_INT,
    TOKEN_FLOAT,
    TOKEN_OP, /* text: one or two characters */
};
struct jinja_token {
    enum jinja_token_kind kind;
    uint32_t line;
    struct jinja_value value; /* data, name, text, int, float, op: its text */
    struct jinja_token *next;
};
/* The tokens of a template, a list that ends with TOKEN_END and lives in `tokens`. Their texts live
 * in `texts`. */
err jinja_lex(struct jinja_token **out, struct arena *tokens, struct arena *texts,
              const char *source, size_t size);

#endif
