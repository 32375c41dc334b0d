"""People and groups of the dashboard, in its theme. Everything else stands in the app it belongs to."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django_otp.plugins.otp_totp.models import TOTPDevice
from unfold.forms import (  # type: ignore[import-untyped]  # unfold ships no types
    AdminPasswordChangeForm,
    UserChangeForm,
    UserCreationForm,
)
from unfold.widgets import (  # type: ignore[import-untyped]  # unfold ships no types
    UnfoldAdminCheckboxSelectMultipleWidget,
)

from apikeys.services import audit
from engine.dashboard.access import acting_as
from engine.dashboard.login import LoginForm
from engine.templatetags.dashboard import at, when

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    DjangoUserAdminOfUser = DjangoUserAdmin[User]
    UnfoldAdmin = ModelAdmin[User]
    UnfoldGroupAdmin = ModelAdmin[Group]
else:  # unfold ships no types
    from unfold.admin import ModelAdmin as UnfoldAdmin

    DjangoUserAdminOfUser = DjangoUserAdmin
    UnfoldGroupAdmin = UnfoldAdmin

admin.site.login_form = LoginForm
admin.site.login_template = "engine/login.html"
admin.site.unregister(TOTPDevice)  # its pages show secrets; `manage.py totp` makes and removes them
admin.site.unregister(User)
admin.site.unregister(Group)


class Audited:
    """Writes an audit row where Django's admin would write its own log of form edits. No value stands in it."""

    def log_addition(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        """Somebody is new."""
        self._audit(request, obj, "created", message)

    def log_change(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        """Somebody has changed; a new password too."""
        self._audit(request, obj, "changed", message)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        """Somebody is gone."""
        for obj in queryset:
            self._audit(request, obj, "deleted", [])

    def _audit(self, request: HttpRequest, obj: Model, what: str, message: Any) -> None:
        kind = "person" if isinstance(obj, User) else "role"
        audit(acting_as(request), f"{kind}.{what}", f"{kind}:{obj}", changes=message)


@admin.register(User)
class UserAdmin(Audited, DjangoUserAdminOfUser, UnfoldAdmin):
    """Who may sign in, and what they may do."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "roles", "is_staff", "is_superuser", "last_seen")
    list_filter = ()  # people are few, and found by their names
    readonly_fields = ("joined", "last_seen")
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        ("Rights", {"fields": ("is_active", "is_staff", "is_superuser", "groups", "user_permissions")}),
        ("Times", {"fields": ("joined", "last_seen")}),
    )
    list_fullwidth = True
    compressed_fields = True
    # Django's own two-box chooser cannot be used with a screen reader.
    filter_horizontal = ()

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Roles are a few: check boxes."""
        if db_field.name == "groups":
            kwargs["widget"] = UnfoldAdminCheckboxSelectMultipleWidget()
        field = super().formfield_for_manytomany(db_field, request, **kwargs)
        if db_field.name == "groups" and field is not None:
            field.label, field.help_text = "Roles", "What each may do stands in docs/dashboard.md."
        return field

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        """People with their roles."""
        return super().get_queryset(request).prefetch_related("groups")

    @admin.display(description="Roles")
    def roles(self, person: User) -> str:
        """The names of the roles this person has."""
        return ", ".join(group.name for group in person.groups.all()) or "–"

    @admin.display(description="Last signed in")
    def last_seen(self, person: User) -> str:
        """When this person signed in last, in the viewer's zone."""
        return when(person.last_login)

    @admin.display(description="Here since")
    def joined(self, person: User) -> str:
        """When this person was made."""
        return at(person.date_joined)


@admin.register(Group)
class GroupAdmin(Audited, DjangoGroupAdmin, UnfoldGroupAdmin):
    """Roles: permissions that several people share. `engine.dashboard.roles` says which ones Engine makes."""

    filter_horizontal = ()
