"""People and groups of the dashboard, in its theme. Everything else stands in the app it belongs to."""

from typing import TYPE_CHECKING

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from unfold.forms import (  # type: ignore[import-untyped]  # unfold ships no types
    AdminPasswordChangeForm,
    UserChangeForm,
    UserCreationForm,
)

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    DjangoUserAdminOfUser = DjangoUserAdmin[User]
    UnfoldAdmin = ModelAdmin[User]
    UnfoldGroupAdmin = ModelAdmin[Group]
else:  # unfold ships no types
    from unfold.admin import ModelAdmin as UnfoldAdmin

    DjangoUserAdminOfUser = DjangoUserAdmin
    UnfoldGroupAdmin = UnfoldAdmin

admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(DjangoUserAdminOfUser, UnfoldAdmin):
    """Who may sign in, and what they may do."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "is_staff", "is_superuser", "last_login")
    list_fullwidth = True
    compressed_fields = True


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, UnfoldGroupAdmin):
    """Permissions that several people share."""
