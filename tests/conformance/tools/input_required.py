"""Tools of the conformance suite that ask the client in revision 2026-07-28, by returning what they need to know."""

from mcp import MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    ClientCapabilities,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitResult,
    InputRequest,
    InputRequiredResult,
    ListRootsRequest,
    ListRootsResult,
    MissingRequiredClientCapabilityErrorData,
    SamplingCapability,
    SamplingMessage,
    TextContent,
)

from ..shared import elicitation
from ..tooling import Context, tool


@tool()
async def test_input_required_result_elicitation(ctx: Context) -> str | InputRequiredResult:
    """Ask for a name."""
    answer = (ctx.input_responses or {}).get("user_name")
    if isinstance(answer, ElicitResult) and answer.content:
        return f"Hello, {answer.content['name']}!"
    return _ask(user_name=elicitation("What is your name?", name="string"))


@tool()
async def test_input_required_result_sampling(ctx: Context) -> str | InputRequiredResult:
    """Ask the client's model."""
    answer = (ctx.input_responses or {}).get("capital_question")
    if isinstance(answer, CreateMessageResult) and isinstance(answer.content, TextContent):
        return answer.content.text
    return _ask(capital_question=_sampling("What is the capital of France?"))


@tool()
async def test_input_required_result_list_roots(ctx: Context) -> str | InputRequiredResult:
    """Ask for the client's roots."""
    answer = (ctx.input_responses or {}).get("client_roots")
    if isinstance(answer, ListRootsResult):
        return ", ".join(str(root.uri) for root in answer.roots)
    return _ask(client_roots=ListRootsRequest())


@tool()
async def test_input_required_result_request_state(ctx: Context) -> str | InputRequiredResult:
    """Ask, and remember."""
    return _confirm(ctx)


@tool()
async def test_input_required_result_tampered_state(ctx: Context) -> str | InputRequiredResult:
    """Ask, and remember: what comes back changed does not reach this function."""
    return _confirm(ctx)


@tool()
async def test_input_required_result_multiple_inputs(ctx: Context) -> str | InputRequiredResult:
    """Ask for three things at once."""
    questions: dict[str, InputRequest] = {
        "user_name": elicitation("What is your name?", name="string"),
        "greeting": _sampling("Generate a greeting"),
        "client_roots": ListRootsRequest(),
    }
    if ctx.request_state == "asked" and ctx.input_responses and questions.keys() <= ctx.input_responses.keys():
        return "answered"
    return _ask("asked", **questions)


@tool()
async def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
    """Ask twice."""
    answers = ctx.input_responses or {}
    if ctx.request_state == "round 2" and "step2" in answers:
        return "answered"
    if ctx.request_state == "round 1" and "step1" in answers:
        return _ask("round 2", step2=elicitation("Step 2: What is your favorite color?", color="string"))
    return _ask("round 1", step1=elicitation("Step 1: What is your name?", name="string"))


@tool()
async def test_input_required_result_capabilities(ctx: Context) -> InputRequiredResult:
    """Ask for what the client can give, and nothing else."""
    can = ctx.client_capabilities or ClientCapabilities()
    questions: dict[str, InputRequest] = {}
    if can.sampling:
        questions["greeting"] = _sampling("Generate a greeting")
    if can.elicitation:
        questions["user_name"] = elicitation("What is your name?", name="string")
    return _ask("asked", **questions)


@tool()
async def test_missing_capability(ctx: Context) -> str:
    """Need a client that can sample."""
    if ctx.client_capabilities is None or ctx.client_capabilities.sampling is None:
        needed = ClientCapabilities(sampling=SamplingCapability())
        data = MissingRequiredClientCapabilityErrorData(required_capabilities=needed)
        raise MCPError(
            MISSING_REQUIRED_CLIENT_CAPABILITY,
            "This tool needs sampling.",
            data.model_dump(mode="json", by_alias=True, exclude_none=True),
        )
    return "sampling is there"


@tool()
async def test_streaming_elicitation(ctx: Context) -> str | InputRequiredResult:
    """Report progress, then ask: the question is the result, not a request on the stream."""
    await ctx.report_progress(1, 2)
    return _confirm(ctx)


def _confirm(ctx: Context) -> str | InputRequiredResult:
    if ctx.request_state == "asked" and ctx.input_responses:
        return "state-ok"
    return _ask("asked", confirm=elicitation("Please confirm", ok="boolean"))


def _ask(state: str | None = None, **questions: InputRequest) -> InputRequiredResult:
    return InputRequiredResult(input_requests=questions, request_state=state)


def _sampling(prompt: str) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=100))
