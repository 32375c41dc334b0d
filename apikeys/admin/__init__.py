"""The dashboard's pages about keys, projects and the audit. Importing this package registers them."""

from apikeys.admin.keys import ApiKeyAdmin
from apikeys.admin.projects import AuditAdmin, ProjectAdmin

__all__ = ["ApiKeyAdmin", "AuditAdmin", "ProjectAdmin"]
