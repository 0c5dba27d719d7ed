"""Protobuf message classes from schemas in Python, which declare only the fields that are read or written."""

from __future__ import annotations

from typing import Any

#: Message -> field -> (number, type, repeated); a type is a scalar of protobuf or a message of the schema.
Schema = dict[str, dict[str, tuple[int, str, bool]]]


def message_class(schema: Schema, message: str, package: str, syntax: str = "proto2") -> Any:
    """Return the class of a message. Fields that the schema lacks remain in a message and are written back.

    Args:
        schema: all messages of the package.
        message: name of the message in `schema`.
        package: name of the package. Each call has its own descriptor pool, so packages do not clash.
        syntax: "proto2", or "proto3", which packs repeated numbers.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax=syntax)
    kinds = descriptor_pb2.FieldDescriptorProto
    for each, fields in schema.items():
        declared = file.message_type.add(name=each)
        for name, (number, kind, repeated) in fields.items():
            field = declared.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in schema:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{message}"))
