/* Chat templates with names, for bases that have none (--template NAME). They repeat the formats
 * that the families were published with, in the shortest form. */
#include "engine/tokens/chat_parts.h"

#include <string.h>

#define ALTERNATE                                                                                  \
    "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}"                                \
    "{{- raise_exception('turns must alternate user, assistant, user, ...') -}}{%- endif -%}"
#define SYSTEM_FIRST                                                                               \
    "{%- set system = '' -%}{%- set turns = messages -%}"                                          \
    "{%- if messages[0].role == 'system' -%}"                                                      \
    "{%- set system = messages[0].content -%}{%- set turns = messages[1:] -%}{%- endif -%}"

static const struct builtin {
    const char *name, *text;
} builtins[] = {
    {"chatml", "{%- for message in messages -%}"
               "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
               "{%- endfor -%}"
               "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"},
    {"llama2", SYSTEM_FIRST
     "{%- for message in turns -%}" ALTERNATE "{%- if message.role == 'user' -%}"
     "{%- set content = message.content -%}{%- if loop.first and system -%}"
     "{%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message.content -%}"
     "{%- endif -%}{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}{%- else -%}"
     "{{- ' ' + message.content.strip() + ' ' + eos_token -}}{%- endif -%}{%- endfor -%}"},
    {"llama3",
     "{{- bos_token -}}{%- for message in messages -%}"
     "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + "
     "message.content.strip() + '<|eot_id|>' -}}{%- endfor -%}{%- if add_generation_prompt -%}"
     "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"},
    {"mistral", SYSTEM_FIRST
     "{{- bos_token -}}{%- for message in turns -%}" ALTERNATE
     "{%- if message.role == 'user' -%}{%- set content = message.content -%}"
     "{%- if loop.first and system -%}{%- set content = system + '\\n\\n' + content -%}"
     "{%- endif -%}{{- '[INST] ' + content + ' [/INST]' -}}{%- else -%}"
     "{{- ' ' + message.content + eos_token -}}{%- endif -%}{%- endfor -%}"},
    {"zephyr", "{%- for message in messages -%}"
               "{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' -}}"
               "{%- endfor -%}"
               "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"},
    {"gemma",
     SYSTEM_FIRST "{{- bos_token -}}{%- for message in turns -%}" ALTERNATE
                  "{%- set role = 'model' if message.role == 'assistant' else 'user' -%}"
                  "{{- '<start_of_turn>' + role + '\\n' -}}"
                  "{%- if loop.first and system -%}{{- system + '\\n\\n' -}}{%- endif -%}"
                  "{{- message.content | trim + '<end_of_turn>\\n' -}}{%- endfor -%}"
                  "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"},
    {"phi3", "{%- for message in messages -%}"
             "{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' -}}"
             "{%- endfor -%}"
             "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"},
    {"alpaca", SYSTEM_FIRST
     "{%- if not system -%}{%- set system = 'Below is an instruction that describes a task. Write "
     "a response that appropriately completes the request.' -%}{%- endif -%}"
     "{{- system + '\\n\\n' -}}{%- for message in turns -%}" ALTERNATE
     "{%- if message.role == 'user' -%}"
     "{{- '### Instruction:\\n' + message.content + '\\n\\n### Response:\\n' -}}{%- else -%}"
     "{{- message.content + eos_token + '\\n\\n' -}}{%- endif -%}{%- endfor -%}"},
    {"vicuna", SYSTEM_FIRST
     "{%- if not system -%}{%- set system = 'A chat between a curious user and an artificial "
     "intelligence assistant. The assistant gives helpful, detailed, and polite answers to the "
     "user\\'s questions.' -%}{%- endif -%}"
     "{{- system + ' ' -}}{%- for message in turns -%}" ALTERNATE
     "{%- if message.role == 'user' -%}{{- 'USER: ' + message.content + ' ASSISTANT:' -}}"
     "{%- else -%}{{- ' ' + message.content + eos_token -}}{%- endif -%}{%- endfor -%}"},
};
_Static_assert(sizeof builtins / sizeof *builtins == CHAT_BUILTINS, "the number of rows");

const char *chat_builtin(const char *name)
{
    for (size_t i = 0; i < CHAT_BUILTINS; i++)
        if (strcmp(builtins[i].name, name) == 0) return builtins[i].text;
    return NULL;
}

void chat_names(const char *out[CHAT_BUILTINS])
{
    for (size_t i = 0; i < CHAT_BUILTINS; i++)
        out[i] = builtins[i].name;
}
