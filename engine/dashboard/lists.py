"""Lists that stay fast over millions of rows: newest first, no counting, no sorting that no index serves."""

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib.admin import SimpleListFilter
from django.core.paginator import Page, Paginator
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    UnfoldAdmin = ModelAdmin[Model]
    AnyPaginator = Paginator[Any]
else:  # unfold ships no types
    from unfold.admin import ModelAdmin as UnfoldAdmin

    AnyPaginator = Paginator

# Further back one gets by filters: OFFSET reads and throws away all rows before the page.
LAST_PAGE = 200


class UncountedPaginator(AnyPaginator):
    """Pages of a list that nobody has counted: one row more than a page tells whether there is a next one."""

    template_name = "engine/pagination.html"
    has_next = False

    @property
    def count(self) -> int:
        """More than any page asks for; never shown."""
        return LAST_PAGE * self.per_page

    def page(self, number: int | str) -> Page[Any]:
        """The rows of one page."""
        number = self.validate_number(number)
        bottom = (number - 1) * self.per_page
        rows = list(self.object_list[bottom : bottom + self.per_page + 1])
        self.has_next = len(rows) > self.per_page and number < LAST_PAGE
        return Page(rows[: self.per_page], number, self)


class ParameterFilter(SimpleListFilter):
    """A filter by one parameter of the address, whose choices the page's own form offers."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Nothing to list; but a filter without choices Django would not apply."""
        return [("", "")]


class ListAdmin(UnfoldAdmin):
    """Rows to look at. What may be done to them has pages and services of its own."""

    list_title = ""  # the page's heading
    paginator = UncountedPaginator
    show_full_result_count = False
    list_per_page = 50
    list_max_show_all = 0
    sortable_by = ()
    ordering: ClassVar[tuple[str, ...]] = ("-id",)
    actions = None
    list_fullwidth = True
    list_filter_sheet = False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The list. Without `opts` the theme's heading is the title alone, not "Jobs > Jobs"."""
        title = {"title": self.list_title} if self.list_title else {}
        response = super().changelist_view(request, {**title, **(extra_context or {})})
        if isinstance(response, TemplateResponse) and response.context_data:
            del response.context_data["opts"]
            changelist = response.context_data["cl"]
            changelist.full_result_count = changelist.result_count  # or the theme shows both as a heading
        return response

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Rows are made elsewhere."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Rows change elsewhere."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Rows go elsewhere."""
        return False
