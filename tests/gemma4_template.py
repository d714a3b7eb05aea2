"""Gemma 4's chat format once more, as a Jinja template written from reference sections 6.3 and 6.4.

The judge of `paceline.chat`: it renders text, in which control tokens are recognised afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jinja2

from paceline.chat import Message, ToolDeclaration

TEMPLATE = r"""
{%- macro text(it) -%}<|"|>{{ it }}<|"|>{%- endmacro -%}

{%- macro texts(them) -%}
  [{% for it in them %}{{ text(it) }}{{ "," if not loop.last }}{% endfor %}]
{%- endmacro -%}

{%- macro json(it, quote_keys=false) -%}
  {%- if it is none -%}null
  {%- elif it is string -%}{{ text(it) }}
  {%- elif it is boolean -%}{{ it | lower }}
  {%- elif it is mapping -%}
    {{ "{" }}
    {%- for key, inner in it | dictsort -%}
      {{ text(key) if quote_keys else key }}:{{ json(inner, quote_keys) }}{{ "," if not loop.last }}
    {%- endfor -%}
    {{ "}" }}
  {%- elif it is sequence -%}
    [{% for inner in it %}{{ json(inner, quote_keys) }}{{ "," if not loop.last }}{% endfor %}]
  {%- else -%}{{ it }}
  {%- endif -%}
{%- endmacro -%}

{%- macro properties(them) -%}
  properties:{{ "{" }}
  {%- for name, schema in them | dictsort -%}
    {%- set kind = schema.type | upper -%}
    {{ name }}:{{ "{" }}
    {%- if schema.description %}description:{{ text(schema.description) }},{% endif -%}
    {%- if kind == "STRING" and schema.enum %}enum:{{ json(schema.enum, true) }},{% endif -%}
    {%- if kind == "ARRAY" and schema["items"] %}items:{{ items(schema["items"]) }},{% endif -%}
    {%- if schema.nullable %}nullable:true,{% endif -%}
    {%- if kind == "OBJECT" -%}
      {{ properties(schema.properties or {}) }},
      {%- if schema.required %}required:{{ texts(schema.required) }},{% endif -%}
    {%- endif -%}
    type:{{ text(kind) }}{{ "}" }}{{ "," if not loop.last }}
  {%- endfor -%}
  {{ "}" }}
{%- endmacro -%}

{%- macro items(schema) -%}
  {{ "{" }}
  {%- for key, it in schema | dictsort -%}
    {%- if key == "properties" %}{{ properties(it) }}
    {%- elif key == "type" %}type:{{ text(it | upper) }}
    {%- else %}{{ key }}:{{ json(it, true) }}
    {%- endif -%}
    {{- "," if not loop.last -}}
  {%- endfor -%}
  {{ "}" }}
{%- endmacro -%}

{%- macro declaration(tool) -%}
  <|tool>declaration:{{ tool.name }}{description:{{ text(tool.description) }}
  {%- if tool.parameters -%}
    ,parameters:{{ "{" }}
    {%- if tool.parameters.properties %}{{ properties(tool.parameters.properties) }},{% endif -%}
    {%- if tool.parameters.required %}required:{{ texts(tool.parameters.required) }},{% endif -%}
    type:{{ text(tool.parameters.type | upper) }}{{ "}" }}
  {%- endif -%}
  {{ "}" }}<tool|>
{%- endmacro -%}

{%- set last_user = namespace(index=-1) -%}
{%- for message in messages if message.role == "user" -%}
  {%- set last_user.index = message.index -%}
{%- endfor -%}
{%- set first = messages[0] -%}
{%- set has_system = first.role in ["system", "developer"] -%}
<bos>
{%- if has_system or tools or thinking -%}
  {{ "<|turn>system\n" }}
  {%- if thinking %}{{ "<|think|>\n" }}{% endif -%}
  {%- if has_system %}{{ first.content | trim }}{% endif -%}
  {%- for tool in tools %}{{ declaration(tool) }}{% endfor -%}
  {{ "<turn|>\n" }}
{%- endif -%}
{%- set at = namespace(role=none) -%}
{%- for message in (messages[1:] if has_system else messages) -%}
  {%- set role = {"assistant": "model", "tool": "model", "developer": "system"}[message.role]
      or message.role -%}
  {%- if role != "model" or at.role != "model" -%}
    {{ "<turn|>\n" if at.role }}{{ "<|turn>" ~ role ~ "\n" }}
  {%- endif -%}
  {%- set at.role = role -%}
  {%- if message.role == "tool" -%}
    <|tool_response>response:{{ message.tool_name }}
    {{- json(message.content if message.content is mapping else {"value": message.content}) -}}
    <tool_response|>
  {%- else -%}
    {%- if message.reasoning and message.index > last_user.index -%}
      {{ "<|channel>thought\n" ~ message.reasoning | trim ~ "\n<channel|>" }}
    {%- endif -%}
    {{ message.content | trim }}
    {%- for call in message.tool_calls -%}
      <|tool_call>call:{{ call.name }}{{ json(call.arguments) }}<tool_call|>
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- if messages[-1].role == "tool" -%}
  {{ "<|channel>thought\n" if thinking }}
{%- else -%}
  {{ "<turn|>\n" if at.role }}{{ "<|turn>model\n" }}
  {{- "<|channel>thought\n<channel|>" if empty_thought and not thinking }}
{%- endif -%}
"""


@functools.cache
def _compiled() -> jinja2.Template:
    return jinja2.Environment().from_string(TEMPLATE)


def template_text(
    messages: Sequence[Message],
    *,
    tools: Sequence[ToolDeclaration] = (),
    thinking: bool = False,
    empty_thought: bool = False,
) -> str:
    numbered: list[dict[str, Any]] = [
        {
            "index": index,
            "role": message.role,
            "content": message.content,
            "reasoning": message.reasoning,
            "tool_calls": message.tool_calls,
            "tool_name": message.tool_name,
        }
        for index, message in enumerate(messages)
    ]
    return _compiled().render(
        messages=numbered, tools=tools, thinking=thinking, empty_thought=empty_thought
    )
